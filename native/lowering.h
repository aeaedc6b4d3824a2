// From a program's operations to the steps of a slice, and the places of the values between them, in three phases: analyse
// finds what each operation's step takes over from its neighbours and how long values live, allocate gives values their
// places, emit makes the steps.
#pragma once

#include <memory>
#include <vector>

#include "arena.h"
#include "conv_step.h"

namespace splore {

struct SliceStep {
  std::unique_ptr<Step> step;
  TunedStep* tuned = nullptr;  // the step, where there are several ways to do it
  ConvStep* conv = nullptr;    // the step, where it is a convolution in float32
  bool may_fuse = false;     // with the next one, row by row
  bool fused = false;
};

struct Lowered {
  Arena arena;
  std::vector<std::unique_ptr<Storage>> unstored;  // the geometry of maps that are pooled before they are stored
  std::vector<SliceStep> steps;
};

// `team`: the threads that will share each step. The layout learns of the borders that the steps want.
Lowered lower(const Program& program, Layout& layout, const Kernels& kernels, int team);

}  // namespace splore
