// The first phase of lowering: what each operation's step takes over from its neighbours, and how long values live.
#pragma once

#include <vector>

#include "layout.h"

namespace splore {

// In float32 a concatenation is a step for each of its inputs.
inline int concat_steps(const Op& op) { return op.kind == SPLORE_CONCAT && !op.quant ? int(op.inputs.size()) : 1; }

struct OpPlan {
  int step = 0;                // its last step; the way in is step 0
  int pool = -1;               // of a convolution: the pool that it does for its tiles, storing nothing else
  bool by_maker = false;       // of a pool, or what a second output is: its maker does it
  int second_for = -1;  // of a convolution: the later one whose relu(scale x + shift) it stores too, its fused second output
  bool second_of_maker = false;  // of that later one
  Border border;  // around relu(scale x + shift), where a convolution has that
  bool phases = false;  // of a convolution: a step before it makes the phases of its input
  bool over_residual = false;  // it writes over its residual, which nobody reads later
};

struct ValuePlan {
  int readers = 0;
  int dies = 0;  // the last step that reads it
  Border border;
};

struct Analysis {
  std::vector<OpPlan> ops;
  std::vector<ValuePlan> values;
};

// The layout learns of the borders that the steps want.
Analysis analyse(const Program& program, Layout& layout);

}  // namespace splore
