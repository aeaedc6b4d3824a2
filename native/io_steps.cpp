// The way in, from the caller's (N, C, H, W), and the way out. A task is a channel.
#include <algorithm>

#include "step.h"

namespace splore {
namespace {

class InputStep : public Step {
 public:
  InputStep(const Layout& layout, const Kernels& kernels, const Storage& out)
      : Step(-1, &out), layout_(layout), kernels_(kernels) {}

  int64_t tasks() const override { return out->shape.c; }
  std::string kernel() const override { return "input"; }

  void run(int64_t c, const Run& run, const Scratch&) const override {
    const Shape& s = out->shape;
    const int64_t pixels = s.h * s.w;
    const float* in = run.in + c * pixels;
    float* to = out->pixels(run.arena) + c * out->plane;
    if (layout_.planar) {
      std::fill(to, to + out->vectors * layout_.lanes, 0.0f);
      for (int i = 0; i < run.images; i++)
        for (int64_t y = 0; y < s.h; y++) {
          const float* row = in + i * s.c * pixels + y * s.w;
          std::copy(row, row + s.w, to + i * out->image + y * out->row);
        }
    } else {
      for (int64_t y = 0; y < s.h; y++) kernels_.interleave(in + y * s.w, s.c * pixels, run.images, to + y * out->row, s.w);
    }
  }

 private:
  const Layout& layout_;
  const Kernels& kernels_;
};

class OutputStep : public Step {
 public:
  OutputStep(const Layout& layout, const Kernels& kernels, const Storage& in)
      : Step(-2, nullptr), in_(in), layout_(layout), kernels_(kernels) {}

  // A flat output has many channels of one pixel: let a task have enough to do.
  int64_t tasks() const override { return (in_.shape.c + kChannels - 1) / kChannels; }
  std::string kernel() const override { return "output"; }

  void run(int64_t task, const Run& run, const Scratch&) const override {
    const int64_t end = std::min((task + 1) * kChannels, in_.shape.c);
    for (int64_t c = task * kChannels; c < end; c++) channel(c, run);
  }

 private:
  static constexpr int64_t kChannels = 16;

  void channel(int64_t c, const Run& run) const {
    const Shape& s = in_.shape;
    const int64_t pixels = s.h * s.w;
    const float* from = in_.pixels(run.arena) + c * in_.plane;
    float* to = run.out + c * pixels;
    if (layout_.planar) {
      for (int i = 0; i < run.images; i++)
        for (int64_t y = 0; y < s.h; y++) {
          const float* row = from + i * in_.image + y * in_.row;
          std::copy(row, row + s.w, to + i * s.c * pixels + y * s.w);
        }
    } else {
      for (int64_t y = 0; y < s.h; y++) kernels_.deinterleave(from + y * in_.row, to + y * s.w, s.c * pixels, run.images, s.w);
    }
  }

  const Storage& in_;
  const Layout& layout_;
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Step> input_step(const Layout& layout, const Kernels& kernels, const Storage& out) {
  return std::make_unique<InputStep>(layout, kernels, out);
}

std::unique_ptr<Step> output_step(const Layout& layout, const Kernels& kernels, const Storage& in) {
  return std::make_unique<OutputStep>(layout, kernels, in);
}

}  // namespace splore
