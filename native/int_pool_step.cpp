// Pools in eight bits. A task is a word. Windows are cut at the edges of the map: no border is read.
#include <algorithm>

#include "int_steps.h"
#include "pool_span.h"

namespace splore {
namespace {

class IntPoolStep : public Step {
 public:
  IntPoolStep(int index, const Op& op, const Quant& in_quant, const Layout& layout, const IntKernels& kernels, const Storage& in,
              const Storage& out)
      : Step(index, &out), op_(op), in_quant_(in_quant), in_(in), layout_(layout), kernels_(kernels) {}

  int64_t tasks() const override { return in_.shape.c; }
  int bits() const override { return 8; }
  std::string kernel() const override { return "int8 pool"; }
  ScratchSize scratch() const override {
    ScratchSize size;
    if (layout_.planar) size.gathered = 3 * line_words();
    return size;
  }

  void run(int64_t task, const Run& run, const Scratch& scratch) const override {
    const float* from = in_.pixels(run.arena) + task * in_.plane;
    float* to = out->pixels(run.arena) + task * out->plane;
    if (layout_.planar)
      for (ptrdiff_t i = 0; i < out->vectors * layout_.lanes; i++) std::memcpy(to + i, &out->fill, sizeof out->fill);
    const Window& w = op_.window;
    for (int64_t y = 0; y < out->shape.h; y++) {
      const Span rows = span(y, w.stride_h, w.kernel_h, w.top, in_.shape.h, w.bottom);
      if (!layout_.planar)
        images_row(rows, from, to + y * out->row);
      else
        for (int i = 0; i < run.images; i++)
          pixels_row(rows, from + i * in_.image, to + i * out->image + y * out->row, scratch.gathered);
    }
  }

 private:
  Span columns(int64_t x) const {
    const Window& w = op_.window;
    return span(x, w.stride_w, w.kernel_w, w.left, in_.shape.w, w.right);
  }
  IntPoolArgs window(const Span& rows, const Span& columns) const {
    IntPoolArgs args{};
    args.max = op_.kind == SPLORE_MAX_POOL;
    args.kernel_h = int32_t(rows.size()), args.kernel_w = int32_t(columns.size());
    args.row = in_.row, args.column = in_.column, args.outputs = 1;
    if (args.max) return args;
    const int64_t inside = rows.size() * columns.size(), counted = op_.count_pad ? rows.padded * columns.padded : inside;
    args.start = int32_t(-in_quant_.zero * inside);
    args.factor = float(double(in_quant_.scale) / (double(op_.quant.scale) * double(counted)));
    args.offset = float(op_.quant.zero);
    return args;
  }

  void images_row(const Span& rows, const float* from, float* to) const {
    for (int64_t x = 0; x < out->shape.w; x++) {
      const Span across = columns(x);
      IntPoolArgs args = window(rows, across);
      args.x = from + rows.begin * in_.row + across.begin * in_.column;
      args.out = to + x * out->column;
      kernels_.pool(args);
    }
  }

  // A line of maxima down, one of maxima across at stride 1, and every stride-th of these; a mean goes one by one.
  ptrdiff_t line_words() const { return op_.window.left + in_.shape.w + op_.window.kernel_w + 2 * layout_.lanes; }

  void pixels_row(const Span& rows, const float* from, float* to, float* scratch) const {
    const Window& w = op_.window;
    const int lanes = layout_.lanes;
    const float* x = from + rows.begin * in_.row;
    if (op_.kind != SPLORE_MAX_POOL) {
      for (int64_t o = 0; o < out->shape.w; o++) {
        const Span across = columns(o);
        IntPoolArgs args = window(rows, across);
        args.x = x + across.begin, args.out = scratch;
        kernels_.pool(args);
        to[o] = scratch[0];
      }
      return;
    }
    float *line = scratch, *maxima = scratch + line_words();
    std::fill(line, line + line_words(), 0.0f);
    IntPoolArgs args = window(rows, {0, 1, 1});
    args.x = x, args.out = line + w.left, args.step = lanes, args.outputs = int32_t((in_.shape.w + lanes - 1) / lanes);
    kernels_.pool(args);
    std::fill(line + w.left + in_.shape.w, line + line_words(), 0.0f);
    const int64_t needed = (out->shape.w - 1) * w.stride_w + 1;
    args = window({0, 1, 1}, {0, w.kernel_w, 0});
    args.x = line, args.column = 1, args.out = maxima, args.step = lanes, args.outputs = int32_t((needed + lanes - 1) / lanes);
    kernels_.pool(args);
    for (int64_t o = 0; o < out->shape.w; o++) to[o] = maxima[o * w.stride_w];
  }

  const Op& op_;
  const Quant in_quant_;
  const Storage& in_;
  const Layout& layout_;
  const IntKernels& kernels_;
};

}  // namespace

std::unique_ptr<Step> int_pool_step(int index, const Op& op, const Quant& in_quant, const Layout& layout,
                                    const IntKernels& kernels, const Storage& in, const Storage& out) {
  return std::make_unique<IntPoolStep>(index, op, in_quant, layout, kernels, in, out);
}

}  // namespace splore
