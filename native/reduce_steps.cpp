// Normalisations and softmax.
#include <algorithm>
#include <cmath>

#include "step.h"

namespace splore {
namespace {

constexpr int64_t kChunk = 4;  // vectors of a task

// Each pixel by itself, over the channels of a group. A task is some vectors of a group.
class PixelStep : public Step {
 public:
  typedef void (*Kernel)(const ReduceArgs&, const float*, float*);

  PixelStep(int index, const Op& op, const Layout& layout, Kernel kernel, const char* name, const Storage& in, const Storage& out)
      : Step(index, &out), op_(op), layout_(layout), in_(in), name_(name), kernel_(kernel) {
    vectors_ = layout.planar ? in.vectors : in.shape.h * in.shape.w;
  }

  int64_t tasks() const override { return op_.groups * chunks(); }
  std::string kernel() const override { return name_; }

  void run(int64_t task, const Run& run, const Scratch&) const override {
    ReduceArgs args{};
    args.channels = in_.shape.c / op_.groups, args.rows = args.columns = 1;
    args.plane = in_.plane, args.out_plane = out->plane;
    const int64_t channel = task / chunks() * args.channels, begin = task % chunks() * kChunk;
    if (op_.scale) args.scale = op_.scale + channel, args.shift = op_.shift + channel, args.eps = op_.numbers[0];
    const float* from = in_.pixels(run.arena) + channel * in_.plane;
    float* to = out->pixels(run.arena) + channel * out->plane;
    for (int64_t v = begin; v < std::min(begin + kChunk, vectors_); v++) {
      const ptrdiff_t at = v * layout_.lanes;
      if (layout_.planar) {
        args.mask = in_.mask + at;
        kernel_(args, from + at, to + at);
      } else {
        const int64_t y = v / in_.shape.w, x = v % in_.shape.w * layout_.lanes;
        kernel_(args, from + y * in_.row + x, to + y * out->row + x);
      }
    }
  }

 private:
  int64_t chunks() const { return (vectors_ + kChunk - 1) / kChunk; }

  const Op& op_;
  const Layout& layout_;
  const Storage& in_;
  const char* const name_;
  const Kernel kernel_;
  int64_t vectors_;
};

// The sum of f over n neighbours, in chains that don't wait for each other.
template <class F>
double sum(const float* x, int64_t n, F f) {
  constexpr int kSums = 16;
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int j = 0; j < kSums; j++) sums[j] += f(x[i + j]);
  for (; i < n; i++) sums[0] += f(x[i]);
  double total = 0;
  for (float each : sums) total += each;
  return total;
}

// All pixels of a group of channels together. A task is a group.
class GroupNormStep : public Step {
 public:
  GroupNormStep(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& in, const Storage& out)
      : Step(index, &out), op_(op), layout_(layout), kernels_(kernels), in_(in), channels_(in.shape.c / op.groups) {}

  int64_t tasks() const override { return op_.groups; }
  std::string kernel() const override { return "group norm"; }

  void run(int64_t group, const Run& run, const Scratch&) const override {
    const int64_t channel = group * channels_;
    const float* from = in_.pixels(run.arena) + channel * in_.plane;
    float* to = out->pixels(run.arena) + channel * out->plane;
    if (!layout_.planar) {
      ReduceArgs args{};
      args.channels = channels_, args.rows = in_.shape.h, args.columns = in_.shape.w;
      args.plane = in_.plane, args.row = in_.row, args.out_plane = out->plane, args.out_row = out->row;
      args.scale = op_.scale + channel, args.shift = op_.shift + channel, args.eps = op_.numbers[0];
      return kernels_.normalize(args, from, to);
    }
    for (int64_t c = 0; c < channels_; c++) std::fill(to + c * out->plane, to + c * out->plane + out->vectors * out->lanes, 0.0f);
    for (int i = 0; i < run.images; i++) image(from + i * in_.image, to + i * out->image, channel);
  }

 private:
  template <class F>
  double mean(const float* from, F f) const {
    double total = 0;
    for (int64_t c = 0; c < channels_; c++)
      for (int64_t y = 0; y < in_.shape.h; y++) total += sum(from + c * in_.plane + y * in_.row, in_.shape.w, f);
    return total / double(channels_ * in_.shape.h * in_.shape.w);
  }

  void image(const float* from, float* to, int64_t channel) const {
    const float centre = float(mean(from, [](float x) { return x; }));
    const double variance = mean(from, [=](float x) { return (x - centre) * (x - centre); });
    const float factor = float(1 / std::sqrt(variance + double(op_.numbers[0])));
    for (int64_t c = 0; c < channels_; c++) {
      const float scale = factor * op_.scale[channel + c], shift = op_.shift[channel + c];
      for (int64_t y = 0; y < in_.shape.h; y++) {
        const float* x = from + c * in_.plane + y * in_.row;
        float* filled = to + c * out->plane + y * out->row;
        for (int64_t j = 0; j < in_.shape.w; j++) filled[j] = (x[j] - centre) * scale + shift;
      }
    }
  }

  const Op& op_;
  const Layout& layout_;
  const Kernels& kernels_;
  const Storage& in_;
  const int64_t channels_;
};

}  // namespace

std::unique_ptr<Step> reduce_step(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& in,
                                  const Storage& out) {
  if (op.kind == SPLORE_NORM_GROUP) return std::make_unique<GroupNormStep>(index, op, layout, kernels, in, out);
  if (op.kind == SPLORE_SOFTMAX) return std::make_unique<PixelStep>(index, op, layout, kernels.softmax, "softmax", in, out);
  return std::make_unique<PixelStep>(index, op, layout, kernels.normalize, "layer norm", in, out);
}

}  // namespace splore
