#include "lowering.h"

#include <algorithm>

#include "analysis.h"
#include "int_conv_step.h"
#include "int_steps.h"
#include "phases.h"

namespace splore {
namespace {

// Where an operation's values lie.
struct OpStorage {
  const Storage* x = nullptr;  // its first input
  const Storage* ready = nullptr;  // relu(scale x + shift), where a convolution has that
  const Storage* phases = nullptr;  // of what it reads, where a convolution has them
  const Storage* other = nullptr;  // its second input
  const Storage* map = nullptr;  // its outputs: where they are stored, or their geometry alone
  const Storage* pooled = nullptr;  // what a pool makes of them in place of that
  const Storage* second = nullptr;  // the fused second output
};

struct Storages {
  std::vector<OpStorage> ops;
  std::vector<const Storage*> values;
};

// What the way in gives: the images, or what they are at once converted to.
size_t value_of_input(const Program& program, const Analysis& found) {
  for (size_t i = 0; i < program.ops.size(); i++)
    if (found.ops[i].by_maker && program.ops[i].kind == SPLORE_CONVERT) return i + 1;
  return 0;
}

Storages allocate(const Program& program, const Analysis& found, Layout& layout, Lowered& lowered) {
  const auto& ops = program.ops;
  const auto& shapes = program.shapes;
  std::vector<OpStorage> all(ops.size());
  const auto stored = [&](size_t v) {
    const Quant quant = program.quant(v);
    Shape shape = shapes[v];
    if (quant) shape.c = (shape.c + 3) / 4;
    Storage storage = layout.storage(shape, found.values[v].border);
    if (quant) storage.fill = quant.word();
    return storage;
  };
  const size_t given = value_of_input(program, found);
  std::vector<const Storage*> values{lowered.arena.add(stored(given), 0, found.values[given].dies)};
  for (size_t i = 0; i < ops.size(); i++) {
    const Op& op = ops[i];
    const OpPlan& plan = found.ops[i];
    OpStorage& at = all[i];
    if (!op.inputs.empty()) at.x = values[size_t(op.inputs[0])];
    if (op.inputs.size() > 1) at.other = values[size_t(op.inputs[1])];
    if (plan.by_maker) {
      const int maker = op.inputs[0] - 1;
      values.push_back(maker < 0 ? values[0] : op.quant ? all[size_t(maker)].second : all[size_t(maker)].pooled);
      continue;
    }
    const int born = plan.step - concat_steps(op) + 1;
    const auto value = [&](size_t v) { return lowered.arena.add(stored(v), born, found.values[v].dies); };
    if (op.kind == SPLORE_CONV && op.scale && !plan.second_of_maker)
      at.ready = lowered.arena.add(layout.storage(at.x->shape, plan.border), plan.step - 1 - plan.phases, plan.step);
    if (plan.phases) {
      Shape shape = shapes[i + 1];
      shape.c = at.x->shape.c * Phases(op.window).count();
      Storage phases = layout.storage(shape, {});
      phases.fill = at.x->fill;
      at.phases = lowered.arena.add(phases, plan.step - 1, plan.step);
    }
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
    if (plan.second_for >= 0 && op.kind == SPLORE_INT_CONV) {
      at.second = value(size_t(plan.second_for) + 1);
    } else if (plan.second_for >= 0) {
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
    const Quant quant = program_.quant(value_of_input(program_, found_));
    const Storage& in = *storages_.values.front();
    add(quant ? int_input_step(program_.shapes[0], quant, layout_, kernels_, in) : input_step(layout_, kernels_, in));
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
    if (op.quant || op.kind == SPLORE_INT_CONV || op.kind == SPLORE_CONVERT) return in_bytes(i);
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

  void in_bytes(size_t i) {
    const Op& op = program_.ops[i];
    const OpStorage& at = storages_.ops[i];
    const int index = int(i);
    switch (op.kind) {
      case SPLORE_INT_CONV:
        return int_convolution(i);
      case SPLORE_MAX_POOL:
      case SPLORE_AVG_POOL:
        return add(int_pool_step(index, op, quant_of(op, 0), layout_, *kernels_.int8, *at.x, *at.map));
      case SPLORE_FLATTEN:
        return add(int_flatten_step(index, layout_, *at.x, *at.map));
    }
    std::vector<IntValue> inputs;
    for (size_t j = 0; j < op.inputs.size(); j++) {
      const size_t value = size_t(op.inputs[j]);
      inputs.push_back({storages_.values[value], program_.shapes[value].c, quant_of(op, j)});
    }
    add(int_map_step(index, op, std::move(inputs), program_.shapes[i + 1].c, layout_, *kernels_.int8, *at.map));
  }

  Quant quant_of(const Op& op, size_t input) const { return program_.quant(size_t(op.inputs[input])); }

  void int_convolution(size_t i) {
    const Op& op = program_.ops[i];
    const OpStorage& at = storages_.ops[i];
    const Quant quant = quant_of(op, 0), residual = quant_of(op, op.inputs.size() - 1);
    const IntConvStep::Values values{phases(i, *at.x), *at.map, at.other, quant, residual, at.phases != nullptr};
    auto conv = std::make_unique<IntConvStep>(int(i), op, values, layout_, *kernels_.int8, team_);
    if (at.second) conv->write_second(*at.second, program_.ops[size_t(found_.ops[i].second_for)]);
    TunedStep* step = conv.get();
    add(std::move(conv));
    steps_.back().tuned = step;
  }

  // What a convolution reads of this input, which is made first where it is the phases.
  const Storage& phases(size_t i, const Storage& in) {
    const Storage* phases = storages_.ops[i].phases;
    if (phases) add(phase_step(int(i), program_.ops[i], in, *phases));
    return phases ? *phases : in;
  }

  void map(int index, const MapRequest& request, const Storage& out) { add(map_step(index, request, layout_, kernels_, out)); }

  void convolution(size_t i) {
    const Op& op = program_.ops[i];
    const OpPlan& plan = found_.ops[i];
    const OpStorage& at = storages_.ops[i];
    if (op.scale && !plan.second_of_maker) map(int(i), {kMapAffine, SPLORE_RELU, at.x, nullptr, op.scale, op.shift}, *at.ready);
    const Storage& in = phases(i, op.scale ? *at.ready : *at.x);
    const ConvStep::Values values{in, *at.map, at.other, at.pooled, at.phases != nullptr};
    auto conv = std::make_unique<ConvStep>(int(i), op, values, layout_, kernels_, team_);
    if (at.second) {
      const Op& reader = program_.ops[size_t(plan.second_for)];
      conv->write_second(*at.second, reader.scale, reader.shift);
    }
    ConvStep* step = conv.get();
    add(std::move(conv));
    steps_.back().conv = step, steps_.back().tuned = step;
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
  const Analysis found = analyse(program, layout);
  const Storages storages = allocate(program, found, layout, lowered);
  Emitter(program, found, storages, layout, kernels, team, lowered.steps).emit();
  return lowered;
}

}  // namespace splore
