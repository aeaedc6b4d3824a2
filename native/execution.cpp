#include "execution.h"

#include <algorithm>
#include <atomic>

namespace splore {
namespace {

// Milliseconds that a team waits for a helper to wake up: half of what it does together, within these.
constexpr double kLeastPatience = 0.1, kMostPatience = 2;

int64_t slices_of(const Part& part) { return (part.images + part.slice->kind.images - 1) / part.slice->kind.images; }

// Whether each worker takes whole slices. What a slice of one thread computes does not hang on who comes first: where tiles
// overlap, the later one's sums stand, and they may differ in the last bit.
bool runs_alone(const Part& part) { return part.slice->kind.team == 1; }

int workers_of(const Part& part, int workers) {
  return runs_alone(part) ? int(std::min<int64_t>(workers, slices_of(part))) : workers;
}

struct Job {
  const Part& part;
  const float* in;
  float* out;
  ptrdiff_t in_size, out_size;  // floats of an image

  Run slice(int64_t index, float* arena) const {
    const int64_t first = index * part.slice->kind.images;
    const int images = int(std::min<int64_t>(part.slice->kind.images, part.images - first));
    return {arena, in + first * in_size, out + first * out_size, images};
  }
};

void run_alone(const Job& job, Team& team, Context& context) {
  const Slice& slice = *job.part.slice;
  const int64_t count = slices_of(job.part);
  const ptrdiff_t each = slice.workspace(1);
  const int workers = workers_of(job.part, team.size());
  float* arenas = context.reserve(each * workers);
  std::atomic<int64_t> next{0};
  const std::function<void(int)> work = [&](int worker) {
    if (worker >= workers) return;
    float* arena = arenas + worker * each;
    for (int64_t i; (i = next.fetch_add(1)) < count;)
      slice.work(0, job.slice(i, arena), arena + slice.arena_floats(), context.alone);
  };
  if (workers == 1)
    work(0);
  else
    team.run_loose(work);
}

void run_shared(const Job& job, Team& team, Context& context) {
  const Slice& slice = *job.part.slice;
  float* arena = context.reserve(slice.workspace(team.size()));
  context.meeting.start(team.size());  // what may fail, fails here
  const double patience = std::min(kMostPatience, std::max(kLeastPatience, slice.milliseconds() / 2));
  for (int64_t i = 0; i < slices_of(job.part); i++) {
    const Run run = job.slice(i, arena);
    team.run_present(
        patience, [&](int workers) { context.meeting.start(workers); },
        [&](int worker) { slice.work(worker, run, arena + slice.arena_floats(), context.meeting); });
  }
}

}  // namespace

float* Context::reserve(ptrdiff_t floats) {
  if (ptrdiff_t(memory.size()) < floats) {
    AlignedVector<float>().swap(memory);  // before the larger one is there
    memory.resize(size_t(floats));
  }
  return memory.data();
}

ptrdiff_t workspace(const Plan& plan, int workers) {
  ptrdiff_t floats = 0;
  for (const Part& part : plan) {
    const int own = workers_of(part, workers);
    floats = std::max(floats, runs_alone(part) ? own * part.slice->workspace(1) : part.slice->workspace(own));
  }
  return floats;
}

void run(const Plan& plan, const Program& program, const float* in, float* out, Team& team, Context& context) {
  const ptrdiff_t in_size = program.shapes.front().elements(), out_size = program.shapes.back().elements();
  for (const Part& part : plan) {
    const Job job{part, in, out, in_size, out_size};
    if (runs_alone(part))
      run_alone(job, team, context);
    else
      run_shared(job, team, context);
    in += part.images * in_size, out += part.images * out_size;
  }
}

}  // namespace splore
