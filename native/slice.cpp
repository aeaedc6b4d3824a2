#include "slice.h"

#include <algorithm>

#include "row_fusion.h"

namespace splore {
namespace {

ptrdiff_t round_up(ptrdiff_t x) { return (x + 15) / 16 * 16; }

}  // namespace

Slice::Slice(const Program& program, const Kernels& kernels, const SliceKind& kind)
    : kind(kind), layout_(kind.planar, kind.images, kernels.lanes), lowered_(lower(program, layout_, kernels, kind.team)) {
  if (!kind.planar && kind.team == 1) mark_fusible(lowered_.steps);
  for (size_t i = 0; i < steps().size(); i++)
    if (steps()[i].may_fuse) lowered_.arena.join(int(i));
  lowered_.arena.place();
}

void Slice::settle(size_t step, const ConvChoice* choice, Packings& packings) {
  SliceStep& entry = lowered_.steps[step];
  if (entry.tuned) {
    entry.tuned->choose(*choice);
    entry.tuned->settle(packings);
  }
  scratch_size_.include(entry.step->scratch());
}

void Slice::fuse(size_t first) {
  lowered_.steps[first].fused = true;
  for (const size_t i : {first, first + 1}) lowered_.steps[i].conv->row_fused = true;
}

void Slice::work(int worker, const Run& run, float* memory, Meeting& meeting) const {
  const Scratch scratch = scratch_of(memory + worker * scratch_floats());
  for (size_t i = 0; i < steps().size(); i++) {
    const SliceStep& step = steps()[i];
    if (step.fused) {
      run_fused(*step.conv, *steps()[++i].conv, run, scratch);
      continue;
    }
    run_step(i, *step.step, step.step->tasks(), worker, run, scratch, meeting);
    meeting.barrier.wait();
  }
}

void Slice::run_step(size_t round, const Step& step, int64_t tasks, int worker, const Run& run, const Scratch& scratch,
                     Meeting& meeting) const {
  step.clear_borders(run.arena, worker, meeting.workers);
  meeting.shares.run(round, tasks, worker, [&](int64_t task) { step.run(task, run, scratch); });
}

Scratch Slice::scratch_of(float* memory) const {
  float* partial = memory + round_up(scratch_size_.gathered);
  float* t = partial + round_up(scratch_size_.partial);
  return {memory, partial, t, t + round_up(scratch_size_.t)};
}

ptrdiff_t Slice::scratch_floats() const {
  const ScratchSize& size = scratch_size_;
  return round_up(size.gathered) + round_up(size.partial) + round_up(size.t) + round_up(size.outputs) + 16;
}

}  // namespace splore
