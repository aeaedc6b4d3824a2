// From a program's operations to the steps of a slice.
#include <algorithm>

#include "slice.h"

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

// In the images layout a map of these widths has tiles that don't reach back over each other: a convolution can then write
// over its residual.
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

}  // namespace

const Storage* Slice::add_storage(const Shape& shape, const Border& border, int born, int dies) {
  storages_.push_back({std::make_unique<Storage>(layout_.storage(shape, border)), born, dies});
  return storages_.back().storage.get();
}

void Slice::extend_life(const Storage* storage, int dies) {
  for (Live& live : storages_)
    if (live.storage.get() == storage) live.dies = std::max(live.dies, dies);
}

void Slice::lower() {
  const auto& ops = program_.ops;
  const auto& shapes = program_.shapes;
  // Step 0 is the way in. An operation's step comes after one for what it wants done to its input first, unless the input's
  // maker does that, a concatenation is a step for each of its inputs, and a pool may be part of its maker's step.
  std::vector<int> step_of(ops.size());
  // A convolution writes what one later convolution wants done to it beside its own output.
  std::vector<int> beside(ops.size(), -1);      // by the writer
  std::vector<bool> is_beside(ops.size(), false);  // by the reader
  // And in place of its own output, what a pool makes of it that nobody else reads.
  std::vector<int> readers(shapes.size(), 0), pool_of(ops.size(), -1);
  std::vector<const Storage*> pooled(ops.size());  // by the pool
  for (size_t i = 0; i < ops.size(); i++)
    for (int value : ops[i].inputs) readers[size_t(value)]++;
  for (size_t i = 0; i < ops.size(); i++) {
    const size_t x = size_t(ops[i].inputs[0]);
    if (!layout_.pixels && x && ops[x - 1].kind == SPLORE_CONV && readers[x] == 1 && halves(ops[i], shapes[x]))
      pool_of[x - 1] = int(i);
  }
  int step = 0;
  for (size_t i = 0; i < ops.size(); i++) {
    const bool pre = ops[i].kind == SPLORE_CONV && ops[i].scale;
    const int maker = ops[i].inputs[0] - 1;
    if (pre && maker >= 0 && ops[size_t(maker)].kind == SPLORE_CONV && beside[size_t(maker)] < 0) {
      beside[size_t(maker)] = int(i);
      is_beside[i] = true;
    }
    if (maker < 0 || pool_of[size_t(maker)] != int(i))
      step += pre && !is_beside[i] ? 2 : ops[i].kind == SPLORE_CONCAT ? int(ops[i].inputs.size()) : 1;
    step_of[i] = step;
  }
  const int last = step + 1;

  std::vector<Border> borders(shapes.size()), pre_borders(ops.size());
  std::vector<int> dies(shapes.size(), 0);
  for (size_t v = 1; v < shapes.size(); v++) dies[v] = step_of[v - 1];
  for (size_t i = 0; i < ops.size(); i++) {
    for (int value : ops[i].inputs) dies[size_t(value)] = std::max(dies[size_t(value)], step_of[i]);
    if (ops[i].kind != SPLORE_CONV) continue;
    const size_t x = size_t(ops[i].inputs[0]);
    // A convolution that stays inside a small map wants none.
    const bool inside = !layout_.pixels && may_stay_inside(ops[i].window, shapes[x], shapes[i + 1]);
    const Border border = inside ? Border{} : border_of(ops[i], shapes[x], shapes[i + 1]);
    (ops[i].scale ? pre_borders[i] : borders[x]).include(border);
    if (layout_.pixels && keeps_map(ops[i], shapes[x], shapes[i + 1])) layout_.reserve(shapes[x], border);
  }
  dies.back() = last;

  std::vector<const Storage*> values, ready_for(ops.size());
  values.push_back(add_storage(shapes[0], borders[0], 0, dies[0]));
  auto add = [&](std::unique_ptr<Step> made, ConvStep* conv = nullptr) {
    steps_.push_back(std::move(made));
    convolutions_.push_back(conv);
  };
  add(input_step(layout_, kernels_, *values[0]));
  for (size_t i = 0; i < ops.size(); i++) {
    const Op& op = ops[i];
    const int index = int(i);
    const Storage* x = values[size_t(op.inputs[0])];
    const Storage* second = op.inputs.size() > 1 ? values[size_t(op.inputs[1])] : nullptr;
    const bool concat = op.kind == SPLORE_CONCAT;
    if (pooled[i]) {
      values.push_back(pooled[i]);
      continue;
    }
    const int born = concat ? step_of[i] - int(op.inputs.size()) + 1 : step_of[i];
    if (is_beside[i]) {
      x = ready_for[i];
    } else if (op.kind == SPLORE_CONV && op.scale) {
      const Storage* ready = add_storage(x->shape, pre_borders[i], step_of[i] - 1, step_of[i]);
      add(map_step(index, {kMapAffine, SPLORE_RELU, x, nullptr, op.scale, op.shift}, layout_, kernels_, *ready));
      x = ready;
    }
    // A residual that nobody reads later gives its place to the sum: less memory, and less traffic to it.
    const size_t r = size_t(op.inputs.back());
    const bool over = !layout_.pixels && pool_of[i] < 0 && op.kind == SPLORE_CONV && second && op.inputs[0] != op.inputs[1] &&
                      dies[r] == step_of[i] && same(borders[r], borders[i + 1]) && has_even_tiles(shapes[i + 1]);
    const Storage* out = over ? second : nullptr;
    if (pool_of[i] >= 0) {
      const size_t pool = size_t(pool_of[i]);
      pooled[pool] = add_storage(shapes[pool + 1], borders[pool + 1], born, dies[pool + 1]);
      maps_.push_back(std::make_unique<Storage>(layout_.storage(shapes[i + 1], borders[i + 1])));
      out = maps_.back().get();
    }
    if (!out) out = add_storage(shapes[i + 1], borders[i + 1], born, dies[i + 1]);
    if (over) extend_life(out, dies[i + 1]);
    values.push_back(out);
    switch (op.kind) {
      case SPLORE_CONV: {
        const Storage* goal = pool_of[i] >= 0 ? pooled[size_t(pool_of[i])] : nullptr;
        auto conv = std::make_unique<ConvStep>(index, op, ConvStep::Values{*x, *out, second, goal}, layout_, kernels_, kind.team);
        ConvStep* same = conv.get();
        if (beside[i] >= 0) {
          const size_t reader = size_t(beside[i]);
          ready_for[reader] = add_storage(out->shape, pre_borders[reader], step_of[i], step_of[reader]);
          same->write_second(*ready_for[reader], ops[reader].scale, ops[reader].shift);
        }
        add(std::move(conv), same);
        break;
      }
      case SPLORE_MAX_POOL:
      case SPLORE_AVG_POOL:
        add(pool_step(index, op, layout_, kernels_, *x, *out));
        break;
      case SPLORE_ADD:
        add(map_step(index, {kMapAdd, op.act, x, second}, layout_, kernels_, *out));
        break;
      case SPLORE_MUL:
        add(map_step(index, {second->shape == x->shape ? kMapMul : kMapMulChannel, op.act, x, second}, layout_, kernels_, *out));
        break;
      case SPLORE_ACTIVATE:
        add(map_step(index, {kMapCopy, op.act, x}, layout_, kernels_, *out));
        break;
      case SPLORE_AFFINE:
        add(map_step(index, {kMapAffine, op.act, x, nullptr, op.scale, op.shift}, layout_, kernels_, *out));
        break;
      case SPLORE_CONCAT: {
        int64_t channel = 0;
        for (int value : op.inputs) {
          const Storage* part = values[size_t(value)];
          MapRequest request{kMapCopy, SPLORE_NONE, part};
          request.channel = channel;
          add(map_step(index, request, layout_, kernels_, *out));
          channel += part->shape.c;
        }
        break;
      }
      case SPLORE_FLATTEN:
        add(flatten_step(index, layout_, kernels_, *x, *out));
        break;
    }
  }
  add(output_step(layout_, kernels_, *values.back()));
}

}  // namespace splore
