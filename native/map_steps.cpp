// Elementwise steps and flatten, and the borders of every step. A task is a channel.
#include <algorithm>
#include <cstring>

#include "step.h"

namespace splore {

void ScratchSize::include(const ScratchSize& other) {
  gathered = std::max(gathered, other.gathered);
  partial = std::max(partial, other.partial);
  t = std::max(t, other.t);
  outputs = std::max(outputs, other.outputs);
}

namespace {

void clear_border(const Storage& s, float* arena, int64_t begin, int64_t end) {
  float zero;
  std::memcpy(&zero, &s.fill, sizeof zero);
  for (int64_t c = begin; c < end; c++) {
    float* plane = arena + s.offset + c * s.plane;
    std::fill(plane, plane + s.first, zero);
    if (s.vectors) {  // the planar layout: the steps mask what lies between rows
      // What follows the last pixel is written with its vector.
      float* after = plane + s.first + s.vectors * s.lanes;
      std::fill(after, plane + s.plane, zero);
      continue;
    }
    const ptrdiff_t used = s.shape.w * s.column;
    for (int64_t y = 0; y < s.shape.h; y++) {
      float* after = plane + s.first + y * s.row + used;
      std::fill(after, y + 1 < s.shape.h ? after + s.row - used : plane + s.plane, zero);
    }
  }
  if (end == s.shape.c) std::fill_n(arena + s.offset + end * s.plane, s.tail, zero);
}

}  // namespace

void Step::clear_borders(float* arena, int worker, int team) const {
  for (const Storage* storage : {out, second})
    if (storage) clear_border(*storage, arena, storage->shape.c * worker / team, storage->shape.c * (worker + 1) / team);
}

namespace {

class MapStep : public Step {
 public:
  MapStep(int index, const MapRequest& request, const Layout& layout, const Kernels& kernels, const Storage& out)
      : Step(index, &out), request_(request), layout_(layout), kernels_(kernels) {
    elementwise_ = request.b && request.b->shape.h == request.a->shape.h && request.b->shape.w == request.a->shape.w;
  }

  int64_t tasks() const override { return request_.a->shape.c; }
  std::string kernel() const override { return request_.kind == kMapCopy ? "copy" : "map"; }

  void run(int64_t c, const Run& run, const Scratch&) const override {
    const Storage& a = *request_.a;
    MapArgs args{};
    args.kind = request_.kind, args.act = int32_t(request_.act);
    args.a = a.pixels(run.arena) + c * a.plane;
    args.out = out->pixels(run.arena) + (request_.channel + c) * out->plane;
    if (request_.b) args.b = request_.b->pixels(run.arena) + (request_.b->shape.c == 1 ? 0 : c * request_.b->plane);
    args.b_step = elementwise_ ? layout_.lanes : 0;
    if (request_.scale) args.scale = request_.scale[c];
    if (request_.shift) args.shift = request_.shift[c];
    if (request_.limits) args.scale = request_.limits[0], args.shift = request_.limits[1];
    if (layout_.planar)
      flattened(args, run);
    else
      by_rows(args);
  }

 private:
  void by_rows(MapArgs args) const {
    const Storage& a = *request_.a;
    const ptrdiff_t b_row = elementwise_ ? request_.b->row : 0;
    args.vectors = a.shape.w;
    int64_t rows = a.shape.h;
    if (a.row == a.shape.w * a.column && out->row == a.row && (!elementwise_ || b_row == a.row)) args.vectors *= rows, rows = 1;
    for (int64_t y = 0; y < rows; y++) {
      kernels_.map(args);
      args.a += a.row, args.out += out->row;
      args.b += b_row;
    }
  }

  void flattened(MapArgs args, const Run& run) const {
    const Storage& a = *request_.a;
    args.vectors = a.vectors, args.mask = a.mask;
    float spread[kMostLanes];
    if (request_.b && !elementwise_ && layout_.images == 1) {
      std::fill(spread, spread + layout_.lanes, *args.b);
      args.b = spread;
    } else if (request_.b && !elementwise_) {  // each image has its number
      for (int i = 0; i < run.images; i++)
        for (int64_t y = 0; y < a.shape.h; y++) {
          const ptrdiff_t at = i * a.image + y * a.row;
          combine(args.kind, args.a + at, args.b[i * request_.b->image], args.out + at, a.shape.w);
        }
      args.kind = kMapCopy, args.a = args.out;
    }
    kernels_.map(args);
  }

  static void combine(int kind, const float* x, float b, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
      const float a = x[i];
      const bool other = kind == kMapMax ? b > a || b != b : kind == kMapMin && (b < a || b != b);
      y[i] = kind == kMapAdd   ? a + b
             : kind == kMapSub ? a - b
             : kind == kMapMul ? a * b
             : kind == kMapDiv ? a / b
                               : (other ? b : a);
    }
  }

  static constexpr int kMostLanes = 16;

  const MapRequest request_;
  bool elementwise_ = false;  // b has a number for each of a's pixels
  const Layout& layout_;
  const Kernels& kernels_;
};

class FlattenStep : public Step {
 public:
  FlattenStep(int index, const Layout& layout, const Kernels& kernels, const Storage& in, const Storage& out)
      : Step(index, &out), in_(in), layout_(layout), kernels_(kernels) {}

  int64_t tasks() const override { return in_.shape.c; }
  std::string kernel() const override { return "flatten"; }

  void run(int64_t c, const Run& run, const Scratch&) const override {
    const float* from = in_.pixels(run.arena) + c * in_.plane;
    const int64_t pixels = in_.shape.h * in_.shape.w;
    float* to = out->pixels(run.arena) + c * pixels * out->plane;
    // In the batch-interleaved layout a pixel is a vector of images; in the other the images lie apart.
    const ptrdiff_t together = layout_.planar ? 1 : layout_.lanes;
    const int apart = layout_.planar ? layout_.images : 1;
    for (int64_t p = 0; p < pixels; p++, to += out->plane) {
      if (layout_.planar) std::fill(to, to + out->vectors * layout_.lanes, 0.0f);
      for (int i = 0; i < apart; i++) {
        const float* pixel = from + i * in_.image + p / in_.shape.w * in_.row + p % in_.shape.w * in_.column;
        std::copy(pixel, pixel + together, to + i * out->image);
      }
    }
  }

 private:
  const Storage& in_;
  const Layout& layout_;
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Step> map_step(int index, const MapRequest& request, const Layout& layout, const Kernels& kernels,
                               const Storage& out) {
  return std::make_unique<MapStep>(index, request, layout, kernels, out);
}

std::unique_ptr<Step> flatten_step(int index, const Layout& layout, const Kernels& kernels, const Storage& in,
                                   const Storage& out) {
  return std::make_unique<FlattenStep>(index, layout, kernels, in, out);
}

}  // namespace splore
