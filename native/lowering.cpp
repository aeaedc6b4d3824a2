#include "lowering.h"

#include <algorithm>

namespace splore {
namespace {

// What a convolution reads around its input.
Border border_of(const Op& op, const Shape& in, const Shape& out) {
  const Window& w = op.window;
  const int64_t reach_h = (out.h - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h - w.top - (in.h - 1);
  const int64_t reach_w = (out.w - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w - w.left - (in.w - 1);
  return {w.top, w.left, std::max<int64_t>(0, reach_h), std::max<int64_t>(0, reach_w)};
}

bool keeps_map(const Op& op, const Shape& in, const Shape& out) {
  return op.window.stride_h == 1 && op.window.stride_w == 1 && in.h == out.h && in.w == out.w;
}

// In the batch-interleaved layout a map of these widths has tiles that don't reach back over each other: a convolution can then
// write over its residual.
bool has_even_tiles(const Shape& shape) { return shape.w % 4 == 0 || shape.w % 7 == 0; }

// A pool that a convolution can do for its tiles.
bool halves(const Op& op, const Shape& in) {
  const Window& w = op.window;
  return op.kind == SPLORE_MAX_POOL && w.kernel_h == 2 && w.kernel_w == 2 && w.stride_h == 2 && w.stride_w == 2 && !w.top &&
         !w.left && !w.bottom && !w.right && in.h % 2 == 0 && in.w % 2 == 0;
}

bool same(const Border& a, const Border& b) {
  return a.top == b.top && a.left == b.left && a.bottom == b.bottom && a.right == b.right;
}

struct OpPlan {
  int step = 0;                // its last step; the way in is step 0
  int pool = -1;               // of a convolution: the pool that it does for its tiles, storing nothing else
  bool by_maker = false;       // of a pool: its maker does it
  int second_for = -1;  // of a convolution: the later one whose relu(scale x + shift) it stores too, its fused second output
  bool second_of_maker = false;  // of that later one
  Border border;  // around relu(scale x + shift), where a convolution has that
  bool over_residual = false;  // it writes over its residual, which nobody reads later
};

struct ValuePlan {
  int readers = 0;
  int dies = 0;  // the last step that reads it
  Border border;
};

struct Analysis {
  std::vector<OpPlan> ops;
  std::vector<ValuePlan> values;
};

class Analyser {
 public:
  Analyser(const Program& program, Layout& layout) : ops_(program.ops), shapes_(program.shapes), layout_(layout) {
    found_.ops.resize(ops_.size());
    found_.values.resize(shapes_.size());
  }

  Analysis analyse() {
    fuse_pools();
    fuse_second_outputs();
    number_steps();
    find_lives();
    find_borders();
    for (size_t i = 0; i < ops_.size(); i++) found_.ops[i].over_residual = may_write_over_residual(i);
    return std::move(found_);
  }

 private:
  static bool is_conv(const Op& op) { return op.kind == SPLORE_CONV; }

  void fuse_pools() {
    for (const Op& op : ops_)
      for (int value : op.inputs) found_.values[size_t(value)].readers++;
    for (size_t i = 0; i < ops_.size(); i++) {
      if (layout_.planar || ops_[i].kind != SPLORE_MAX_POOL) continue;
      const size_t x = size_t(ops_[i].inputs[0]);
      if (!x || !is_conv(ops_[x - 1]) || found_.values[x].readers > 1 || !halves(ops_[i], shapes_[x])) continue;
      found_.ops[x - 1].pool = int(i);
      found_.ops[i].by_maker = true;
    }
  }

  void fuse_second_outputs() {
    for (size_t i = 0; i < ops_.size(); i++) {
      if (!is_conv(ops_[i]) || !ops_[i].scale) continue;
      const int maker = ops_[i].inputs[0] - 1;
      if (maker < 0 || !is_conv(ops_[size_t(maker)])) continue;
      OpPlan& writer = found_.ops[size_t(maker)];
      if (writer.second_for >= 0) continue;
      writer.second_for = int(i);
      found_.ops[i].second_of_maker = true;
    }
  }

  // An operation's step comes after one for relu(scale x + shift), unless its maker does that, a concatenation is a step for
  // each of its inputs, and a pool may be part of its maker's step.
  void number_steps() {
    int step = 0;
    for (size_t i = 0; i < ops_.size(); i++) {
      OpPlan& plan = found_.ops[i];
      const bool map_first = is_conv(ops_[i]) && ops_[i].scale && !plan.second_of_maker;
      if (!plan.by_maker) step += map_first ? 2 : ops_[i].kind == SPLORE_CONCAT ? int(ops_[i].inputs.size()) : 1;
      plan.step = step;
    }
  }

  void find_lives() {
    for (size_t v = 1; v < shapes_.size(); v++) found_.values[v].dies = found_.ops[v - 1].step;
    for (size_t i = 0; i < ops_.size(); i++)
      for (int value : ops_[i].inputs)
        found_.values[size_t(value)].dies = std::max(found_.values[size_t(value)].dies, found_.ops[i].step);
    found_.values.back().dies = found_.ops.back().step + 1;  // the way out
  }

  void find_borders() {
    for (size_t i = 0; i < ops_.size(); i++) {
      if (!is_conv(ops_[i])) continue;
      const size_t x = size_t(ops_[i].inputs[0]);
      // A convolution that stays inside a small map wants none.
      const bool inside = !layout_.planar && may_stay_inside(ops_[i].window, shapes_[x], shapes_[i + 1]);
      const Border border = inside ? Border{} : border_of(ops_[i], shapes_[x], shapes_[i + 1]);
      (ops_[i].scale ? found_.ops[i].border : found_.values[x].border).include(border);
      if (layout_.planar && keeps_map(ops_[i], shapes_[x], shapes_[i + 1])) layout_.reserve(shapes_[x], border);
    }
  }

  // A residual that nobody reads later gives its place to the sum: less memory, and less traffic to it.
  bool may_write_over_residual(size_t i) const {
    const Op& op = ops_[i];
    if (layout_.planar || !is_conv(op) || op.inputs.size() < 2 || op.inputs[0] == op.inputs[1] || found_.ops[i].pool >= 0)
      return false;
    const ValuePlan& residual = found_.values[size_t(op.inputs[1])];
    return residual.dies == found_.ops[i].step && same(residual.border, found_.values[i + 1].border) &&
           has_even_tiles(shapes_[i + 1]);
  }

  const std::vector<Op>& ops_;
  const std::vector<Shape>& shapes_;
  Layout& layout_;
  Analysis found_;
};

// Where an operation's values lie.
struct OpStorage {
  const Storage* x = nullptr;  // its first input
  const Storage* ready = nullptr;  // relu(scale x + shift), where a convolution has that
  const Storage* other = nullptr;  // its second input
  const Storage* map = nullptr;  // its outputs: where they are stored, or their geometry alone
  const Storage* pooled = nullptr;  // what a pool makes of them in place of that
  const Storage* second = nullptr;  // the fused second output
};

struct Storages {
  std::vector<OpStorage> ops;
  std::vector<const Storage*> values;
};

Storages allocate(const Program& program, const Analysis& found, Layout& layout, Lowered& lowered) {
  const auto& ops = program.ops;
  const auto& shapes = program.shapes;
  std::vector<OpStorage> all(ops.size());
  std::vector<const Storage*> values{
      lowered.arena.add(layout.storage(shapes[0], found.values[0].border), 0, found.values[0].dies)};
  for (size_t i = 0; i < ops.size(); i++) {
    const Op& op = ops[i];
    const OpPlan& plan = found.ops[i];
    OpStorage& at = all[i];
    if (!op.inputs.empty()) at.x = values[size_t(op.inputs[0])];
    if (op.inputs.size() > 1) at.other = values[size_t(op.inputs[1])];
    if (plan.by_maker) {
      values.push_back(all[size_t(op.inputs[0]) - 1].pooled);
      continue;
    }
    const int born = op.kind == SPLORE_CONCAT ? plan.step - int(op.inputs.size()) + 1 : plan.step;
    const auto value = [&](size_t v) {
      return lowered.arena.add(layout.storage(shapes[v], found.values[v].border), born, found.values[v].dies);
    };
    if (op.kind == SPLORE_CONV && op.scale && !plan.second_of_maker)
      at.ready = lowered.arena.add(layout.storage(at.x->shape, plan.border), plan.step - 1, plan.step);
    if (plan.pool >= 0) {
      at.pooled = value(size_t(plan.pool) + 1);
      lowered.unstored.push_back(std::make_unique<Storage>(layout.storage(shapes[i + 1], found.values[i + 1].border)));
      at.map = lowered.unstored.back().get();
    } else if (plan.over_residual) {
      at.map = at.other;
      lowered.arena.keep(at.map, found.values[i + 1].dies);
    } else {
      at.map = value(i + 1);
    }
    if (plan.second_for >= 0) {
      const OpPlan& reader = found.ops[size_t(plan.second_for)];
      at.second = lowered.arena.add(layout.storage(at.map->shape, reader.border), plan.step, reader.step);
      all[size_t(plan.second_for)].ready = at.second;
    }
    values.push_back(at.map);
  }
  return {std::move(all), std::move(values)};
}

class Emitter {
 public:
  Emitter(const Program& program, const Analysis& found, const Storages& storages, const Layout& layout, const Kernels& kernels,
          int team, std::vector<SliceStep>& steps)
      : program_(program), found_(found), storages_(storages), layout_(layout), kernels_(kernels), team_(team), steps_(steps) {}

  void emit() {
    add(input_step(layout_, kernels_, *storages_.values.front()));
    for (size_t i = 0; i < program_.ops.size(); i++)
      if (!found_.ops[i].by_maker) emit(i);
    add(output_step(layout_, kernels_, *storages_.values.back()));
  }

 private:
  void add(std::unique_ptr<Step> step) {
    steps_.emplace_back();
    steps_.back().step = std::move(step);
  }

  void emit(size_t i) {
    const Op& op = program_.ops[i];
    const OpStorage& at = storages_.ops[i];
    const int index = int(i);
    switch (op.kind) {
      case SPLORE_CONV:
        return convolution(i);
      case SPLORE_MAX_POOL:
      case SPLORE_AVG_POOL:
        return add(pool_step(index, op, layout_, kernels_, *at.x, *at.map));
      case SPLORE_ADD:
        return map(index, {kMapAdd, op.act, at.x, at.other}, *at.map);
      case SPLORE_MUL:
        return map(index, {kMapMul, op.act, at.x, at.other}, *at.map);
      case SPLORE_ACTIVATE:
        return map(index, {kMapCopy, op.act, at.x}, *at.map);
      case SPLORE_AFFINE:
        return map(index, {kMapAffine, op.act, at.x, nullptr, op.scale, op.shift}, *at.map);
      case SPLORE_CONCAT:
        return concat(i);
      case SPLORE_FLATTEN:
        return add(flatten_step(index, layout_, kernels_, *at.x, *at.map));
      default:
        return add(tensor_step(index, op, layout_, kernels_, {at.x, at.other, at.map}));
    }
  }

  void map(int index, const MapRequest& request, const Storage& out) { add(map_step(index, request, layout_, kernels_, out)); }

  void convolution(size_t i) {
    const Op& op = program_.ops[i];
    const OpPlan& plan = found_.ops[i];
    const OpStorage& at = storages_.ops[i];
    if (op.scale && !plan.second_of_maker) map(int(i), {kMapAffine, SPLORE_RELU, at.x, nullptr, op.scale, op.shift}, *at.ready);
    const ConvStep::Values values{op.scale ? *at.ready : *at.x, *at.map, at.other, at.pooled};
    auto conv = std::make_unique<ConvStep>(int(i), op, values, layout_, kernels_, team_);
    if (at.second) {
      const Op& reader = program_.ops[size_t(plan.second_for)];
      conv->write_second(*at.second, reader.scale, reader.shift);
    }
    ConvStep* step = conv.get();
    add(std::move(conv));
    steps_.back().conv = step;
  }

  void concat(size_t i) {
    int64_t channel = 0;
    for (int value : program_.ops[i].inputs) {
      const Storage* part = storages_.values[size_t(value)];
      MapRequest request{kMapCopy, SPLORE_NONE, part};
      request.channel = channel;
      map(int(i), request, *storages_.ops[i].map);
      channel += part->shape.c;
    }
  }

  const Program& program_;
  const Analysis& found_;
  const Storages& storages_;
  const Layout& layout_;
  const Kernels& kernels_;
  const int team_;
  std::vector<SliceStep>& steps_;
};

}  // namespace

Lowered lower(const Program& program, Layout& layout, const Kernels& kernels, int team) {
  Lowered lowered;
  const Analysis found = Analyser(program, layout).analyse();
  const Storages storages = allocate(program, found, layout, lowered);
  Emitter(program, found, storages, layout, kernels, team, lowered.steps).emit();
  return lowered;
}

}  // namespace splore
