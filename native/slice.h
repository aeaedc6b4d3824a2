// A slice: the program lowered to steps for some images at a time, in one layout, with its own choice of kernels and memory.
// After the tuner has chosen (tuner.h), or a saved plan (saved_plan.h), it does not change any more, and any number of callers
// may run it at once.
#pragma once

#include <memory>
#include <tuple>
#include <vector>

#include "lowering.h"
#include "packings.h"
#include "threads.h"

namespace splore {

struct SliceKind {
  bool planar;  // the layout
  int images;   // at once; the lanes in the batch-interleaved layout
  int team;     // threads that share each step; 1 for a slice that each thread runs by itself
  bool operator<(const SliceKind& o) const { return std::tie(planar, images, team) < std::tie(o.planar, o.images, o.team); }
};

class Slice {
 public:
  Slice(const Program& program, const Kernels& kernels, const SliceKind& kind);
  Slice(const Slice&) = delete;

  // The calling thread as one of meeting.workers, all of whom call this with the same run; one alone does what all would.
  void work(int worker, const Run& run, float* scratch, Meeting& meeting) const;
  // One step of that, up to the barrier; `round` counts the steps since the meeting's start.
  void run_step(size_t round, const Step& step, int64_t tasks, int worker, const Run& run, const Scratch& scratch,
                Meeting& meeting) const;

  ptrdiff_t arena_floats() const { return lowered_.arena.floats(); }
  ptrdiff_t scratch_floats() const;  // of each worker
  // Arena and the scratch of so many workers.
  ptrdiff_t workspace(int workers) const { return arena_floats() + workers * scratch_floats(); }
  Scratch scratch_of(float* memory) const;
  const std::vector<SliceStep>& steps() const { return lowered_.steps; }
  double milliseconds() const { return milliseconds_; }  // of a run; 0 where it was not timed

  // The choices, in the order of the steps; `choice` is null where a step is no convolution.
  void settle(size_t step, const ConvChoice* choice, Packings& packings);
  void fuse(size_t first);  // with the next step, which it must be fit for
  void set_milliseconds(size_t step, double milliseconds) { lowered_.steps[step].step->milliseconds = milliseconds; }
  void set_milliseconds(double milliseconds) { milliseconds_ = milliseconds; }

  const SliceKind kind;

 private:
  friend class Tuner;  // tries choices, and says what scratch they need

  Layout layout_;
  Lowered lowered_;
  ScratchSize scratch_size_;  // the largest that a step needs
  double milliseconds_ = 0;
};

}  // namespace splore
