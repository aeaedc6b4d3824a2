#include "analysis.h"

#include <algorithm>

#include "conv_step.h"
#include "phases.h"
#include "pool_span.h"

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

bool is_conv(const Op& op) { return op.kind == SPLORE_CONV || op.kind == SPLORE_INT_CONV; }

bool same(const Border& a, const Border& b) {
  return a.top == b.top && a.left == b.left && a.bottom == b.bottom && a.right == b.right;
}

class Analyser {
 public:
  Analyser(const Program& program, Layout& layout) : ops_(program.ops), shapes_(program.shapes), layout_(layout) {
    found_.ops.resize(ops_.size());
    found_.values.resize(shapes_.size());
    for (size_t v = 0; v < shapes_.size(); v++) quant_.push_back(program.quant(v));
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
  void fuse_pools() {
    for (const Op& op : ops_)
      for (int value : op.inputs) found_.values[size_t(value)].readers++;
    for (size_t i = 0; i < ops_.size(); i++) {
      if (layout_.planar || ops_[i].kind != SPLORE_MAX_POOL) continue;
      const size_t x = size_t(ops_[i].inputs[0]);
      if (!x || ops_[x - 1].kind != SPLORE_CONV || found_.values[x].readers > 1 || !halves(ops_[i], shapes_[x])) continue;
      found_.ops[x - 1].pool = int(i);
      found_.ops[i].by_maker = true;
    }
  }

  void fuse_second_outputs() {
    for (size_t i = 0; i < ops_.size(); i++) {
      if (converts_input(i)) found_.ops[i].by_maker = true;
      const bool in_bytes = ops_[i].kind == SPLORE_AFFINE && ops_[i].quant,
                 has_map = ops_[i].kind == SPLORE_CONV && ops_[i].scale;
      if (!in_bytes && !has_map) continue;
      const int maker = ops_[i].inputs[0] - 1;
      if (maker < 0 || ops_[size_t(maker)].kind != (in_bytes ? SPLORE_INT_CONV : SPLORE_CONV)) continue;
      OpPlan& writer = found_.ops[size_t(maker)];
      if (writer.second_for >= 0) continue;
      writer.second_for = int(i);
      (in_bytes ? found_.ops[i].by_maker : found_.ops[i].second_of_maker) = true;
    }
  }

  // The way in gives the images in bytes, where nobody wants them otherwise.
  bool converts_input(size_t i) const {
    return ops_[i].kind == SPLORE_CONVERT && !ops_[i].inputs[0] && found_.values[0].readers == 1;
  }

  // An operation's step comes after one for relu(scale x + shift), unless its maker does that, and one for the phases of its
  // input; a concatenation is a step for each of its inputs, and a pool may be part of its maker's step.
  void number_steps() {
    int step = 0;
    for (size_t i = 0; i < ops_.size(); i++) {
      OpPlan& plan = found_.ops[i];
      const bool map_first = ops_[i].kind == SPLORE_CONV && ops_[i].scale && !plan.second_of_maker;
      if (is_conv(ops_[i]))
        plan.phases = Phases::serve(ops_[i].window, shapes_[size_t(ops_[i].inputs[0])], shapes_[i + 1], layout_);
      if (!plan.by_maker) step += concat_steps(ops_[i]) + map_first + plan.phases;
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
      if (found_.ops[i].phases) {
        layout_.reserve(shapes_[i + 1], Phases(ops_[i].window).border());
        continue;
      }
      const size_t x = size_t(ops_[i].inputs[0]);
      // A convolution that stays inside a small map wants none.
      const bool inside =
          !layout_.planar && ops_[i].kind == SPLORE_CONV && may_stay_inside(ops_[i].window, shapes_[x], shapes_[i + 1]);
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
    const bool alike =
        same(residual.border, found_.values[i + 1].border) && quant_[size_t(op.inputs[1])].word() == op.quant.word();
    return residual.dies == found_.ops[i].step && alike && bool(quant_[size_t(op.inputs[1])]) == bool(op.quant) &&
           has_even_tiles(shapes_[i + 1]);
  }

  const std::vector<Op>& ops_;
  const std::vector<Shape>& shapes_;
  std::vector<Quant> quant_;
  Layout& layout_;
  Analysis found_;
};

}  // namespace

Analysis analyse(const Program& program, Layout& layout) { return Analyser(program, layout).analyse(); }

}  // namespace splore
