// Steps that move numbers or mix a few of them: reorderings, resamplings, constants, and products of two values.
#include <algorithm>
#include <vector>

#include "step.h"

namespace splore {
namespace {

// In the batch-interleaved layout a pixel is a vector of images; in the other the images lie apart, and what lies between
// their rows is zero.
struct Images {
  Images(const Layout& layout) : together(layout.planar ? 1 : layout.lanes), apart(layout.planar ? layout.images : 1) {}
  const ptrdiff_t together;
  const int apart;
};

void clear_plane(const Layout& layout, const Storage& s, float* plane) {
  if (layout.planar) std::fill(plane, plane + s.vectors * s.lanes, 0.0f);
}

ptrdiff_t unit(const Storage& s, int axis) { return axis == 0 ? s.plane : axis == 1 ? s.row : s.column; }

// Where the steps of a dimension's factors lead, in floats.
std::vector<ptrdiff_t> places(const Factors& factors, const Storage& in) {
  std::vector<ptrdiff_t> found{0};
  for (const Factor& factor : factors) {
    std::vector<ptrdiff_t> next;
    next.reserve(found.size() * size_t(factor.size));
    for (ptrdiff_t at : found)
      for (int64_t i = 0; i < factor.size; i++) next.push_back(at + i * factor.stride * unit(in, factor.axis));
    found = std::move(next);
  }
  return found;
}

class ReorderStep : public Step {
 public:
  ReorderStep(int index, const Op& op, const Layout& layout, const Storage& in, const Storage& out)
      : Step(index, &out), in_(in), layout_(layout) {
    for (int axis = 0; axis < 3; axis++) first_ += op.offset[axis] * unit(in, axis);
    channels_ = places(op.channels, in), rows_ = places(op.rows, in), columns_ = places(op.columns, in);
    for (size_t i = 0; i < columns_.size(); i++) neighbours_ = neighbours_ && columns_[i] == ptrdiff_t(i) * in.column;
  }

  int64_t tasks() const override { return out->shape.c; }
  std::string kernel() const override { return "reorder"; }

  void run(int64_t c, const Run& run, const Scratch&) const override {
    const Images images(layout_);
    const float* from = in_.pixels(run.arena) + first_ + channels_[size_t(c)];
    float* to = out->pixels(run.arena) + c * out->plane;
    clear_plane(layout_, *out, to);
    for (int i = 0; i < std::min(images.apart, run.images); i++)
      for (size_t y = 0; y < rows_.size(); y++) {
        const float* row = from + i * in_.image + rows_[y];
        float* filled = to + i * out->image + ptrdiff_t(y) * out->row;
        if (neighbours_)
          std::copy(row, row + ptrdiff_t(columns_.size()) * images.together, filled);
        else if (layout_.planar)
          for (size_t x = 0; x < columns_.size(); x++) filled[x] = row[columns_[x]];
        else
          for (size_t x = 0; x < columns_.size(); x++, filled += images.together)
            std::copy(row + columns_[x], row + columns_[x] + images.together, filled);
      }
  }

 private:
  const Storage& in_;
  const Layout& layout_;
  ptrdiff_t first_ = 0;
  std::vector<ptrdiff_t> channels_, rows_, columns_;
  bool neighbours_ = true;  // a row of the output is a piece of a row of the input
};

class ResampleStep : public Step {
 public:
  ResampleStep(int index, const Op& op, const Layout& layout, const Storage& in, const Storage& out)
      : Step(index, &out), op_(op), in_(in), layout_(layout) {}

  int64_t tasks() const override { return out->shape.c; }
  std::string kernel() const override { return "resample"; }
  ScratchSize scratch() const override {
    ScratchSize size;
    size.gathered = in_.shape.w * Images(layout_).together;
    return size;
  }

  void run(int64_t c, const Run& run, const Scratch& scratch) const override {
    const Images images(layout_);
    const float* from = in_.pixels(run.arena) + c * in_.plane;
    float* to = out->pixels(run.arena) + c * out->plane;
    clear_plane(layout_, *out, to);
    for (int i = 0; i < std::min(images.apart, run.images); i++)
      for (int64_t y = 0; y < out->shape.h; y++)
        row(y, images.together, from + i * in_.image, to + i * out->image + y * out->row, scratch.gathered);
  }

 private:
  void row(int64_t y, ptrdiff_t together, const float* from, float* to, float* line) const {
    const int64_t down = op_.window.kernel_h, across = op_.window.kernel_w, width = in_.shape.w * together;
    const uint32_t* index = op_.places + y * down;
    const float* weight = op_.numbers + y * down;
    for (int64_t a = 0; a < down; a++) {
      const float* x = from + ptrdiff_t(index[a]) * in_.row;
      if (a == 0)
        for (int64_t i = 0; i < width; i++) line[i] = weight[0] * x[i];
      else if (weight[a] != 0)
        for (int64_t i = 0; i < width; i++) line[i] += weight[a] * x[i];
    }
    index = op_.places + out->shape.h * down, weight = op_.numbers + out->shape.h * down;
    for (int64_t j = 0; j < out->shape.w; j++, to += together) {
      std::fill(to, to + together, 0.0f);
      for (int64_t b = 0; b < across; b++, index++, weight++) {
        const float* x = line + ptrdiff_t(*index) * together;
        for (ptrdiff_t l = 0; l < together; l++) to[l] += *weight * x[l];
      }
    }
  }

  const Op& op_;
  const Storage& in_;
  const Layout& layout_;
};

class ConstantStep : public Step {
 public:
  ConstantStep(int index, const Op& op, const Layout& layout, const Storage& out) : Step(index, &out), op_(op), layout_(layout) {}

  int64_t tasks() const override { return out->shape.c; }
  std::string kernel() const override { return "constant"; }

  void run(int64_t c, const Run& run, const Scratch&) const override {
    const Images images(layout_);
    const int64_t height = out->shape.h, width = out->shape.w;
    const float* from = op_.numbers + c * height * width;
    float* to = out->pixels(run.arena) + c * out->plane;
    clear_plane(layout_, *out, to);
    for (int i = 0; i < std::min(images.apart, run.images); i++)
      for (int64_t y = 0; y < height; y++) {
        float* row = to + i * out->image + y * out->row;
        for (int64_t x = 0; x < width; x++, row += out->column) std::fill(row, row + images.together, from[y * width + x]);
      }
  }

 private:
  const Op& op_;
  const Layout& layout_;
};

// A task is some rows of a group.
class ProductStep : public Step {
 public:
  ProductStep(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& x, const Storage& b,
              const Storage& out)
      : Step(index, &out), op_(op), layout_(layout), kernels_(kernels), x_(x), b_(b), n_(out.shape.c / op.groups) {}

  int64_t tasks() const override { return op_.groups * parts(); }
  std::string kernel() const override { return "product"; }
  int64_t multiply_adds() const override { return out->shape.elements() * (x_.shape.c / op_.groups); }

  void run(int64_t task, const Run& run, const Scratch&) const override {
    const Images images(layout_);
    const bool transposed = op_.kind == SPLORE_MATMUL_TRANSPOSED;
    const int64_t group = task / parts(), begin = task % parts() * kRows, end = std::min(begin + kRows, n_);
    ProductArgs args{};
    args.images = !layout_.planar;
    args.n = end - begin, args.k = x_.shape.c / op_.groups;
    args.x_plane = x_.plane, args.out_plane = out->plane;
    args.b_n = transposed ? b_.column : b_.plane, args.b_k = transposed ? b_.plane : b_.column;
    args.lanes = x_.shape.w * images.together, args.scale = op_.numbers[0];
    const float* x = x_.pixels(run.arena) + group * args.k * x_.plane;
    const float* b = b_.pixels(run.arena) + group * (transposed ? args.k : n_) * b_.plane + begin * args.b_n;
    float* to = out->pixels(run.arena) + (group * n_ + begin) * out->plane;
    for (int64_t i = 0; i < args.n; i++) clear_plane(layout_, *out, to + i * out->plane);
    for (int i = 0; i < std::min(images.apart, run.images); i++) {
      args.x = x + i * x_.image, args.b = b + i * b_.image, args.out = to + i * out->image;
      kernels_.product(args);
    }
  }

 private:
  static constexpr int64_t kRows = 32;
  int64_t parts() const { return (n_ + kRows - 1) / kRows; }

  const Op& op_;
  const Layout& layout_;
  const Kernels& kernels_;
  const Storage& x_;
  const Storage& b_;
  const int64_t n_;
};

}  // namespace

std::unique_ptr<Step> tensor_step(int index, const Op& op, const Layout& layout, const Kernels& kernels,
                                  const TensorValues& values) {
  const Storage& out = *values.out;
  if (op.kind == SPLORE_CONSTANT) return std::make_unique<ConstantStep>(index, op, layout, out);
  const Storage& x = *values.x;
  switch (op.kind) {
    case SPLORE_REORDER:
      return std::make_unique<ReorderStep>(index, op, layout, x, out);
    case SPLORE_RESAMPLE:
      return std::make_unique<ResampleStep>(index, op, layout, x, out);
    case SPLORE_COMBINE: {
      constexpr MapKind kKinds[] = {kMapAdd, kMapSub, kMapMul, kMapDiv, kMapMax, kMapMin};
      return map_step(index, {kKinds[op.fn], op.act, &x, values.other}, layout, kernels, out);
    }
    case SPLORE_LEAKY:
      return map_step(index, {kMapLeaky, SPLORE_NONE, &x, nullptr, op.scale}, layout, kernels, out);
    case SPLORE_CLAMP: {
      MapRequest request{kMapClamp, SPLORE_NONE, &x};
      request.limits = op.numbers;
      return map_step(index, request, layout, kernels, out);
    }
    case SPLORE_MATMUL:
    case SPLORE_MATMUL_TRANSPOSED:
      return std::make_unique<ProductStep>(index, op, layout, kernels, x, *values.other, out);
    default:
      return reduce_step(index, op, layout, kernels, x, out);
  }
}

}  // namespace splore
