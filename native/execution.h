// The running of a plan by a team: a batch is cut into slices of the images.
#pragma once

#include <memory>
#include <vector>

#include "slice.h"
#include "weights.h"

namespace splore {

// Images of a batch, in slices of one kind, the last of which may have fewer than it could.
struct Part {
  std::shared_ptr<const Slice> slice;
  int64_t images;
};
using Plan = std::vector<Part>;

// What one caller's runs need for themselves.
struct Context {
  AlignedVector<float> memory;
  Meeting meeting;
  Meeting alone;  // of a worker that runs a slice by itself; never changes

  float* reserve(ptrdiff_t floats);
};

// Floats that a run by so many workers takes.
ptrdiff_t workspace(const Plan& plan, int workers);

// in (batch, C, H, W) -> out (batch, C', H', W') for the plan's images.
void run(const Plan& plan, const Program& program, const float* in, float* out, Team& team, Context& context);

}  // namespace splore
