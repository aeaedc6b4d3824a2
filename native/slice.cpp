#include "slice.h"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace splore {
namespace {

constexpr ptrdiff_t kGuard = 256;  // floats before and after the values, for reads that are masked away
constexpr ptrdiff_t kMostFloats = ptrdiff_t(1) << 34;

// How long a candidate is timed: until either is reached, but some times at the least.
constexpr int kRepeats = 30;
constexpr double kMilliseconds = 0.8;
constexpr double kEnoughMacs = 3e7;  // of a thread

// Milliseconds. A thread that works alone looks at its own time on the processor, which other processes don't disturb.
double now(bool alone) {
  timespec t;
  clock_gettime(alone ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

ptrdiff_t round_up(ptrdiff_t x) { return (x + 15) / 16 * 16; }

}  // namespace

Slice::Slice(const Program& program, const Kernels& kernels, const SliceKind& kind, const std::string& forced)
    : kind(kind),
      program_(program),
      kernels_(kernels),
      layout_(kind.pixels, kind.images, kernels.lanes),
      forced_(forced) {
  const char* plan = std::getenv("SPLORE_PLAN");
  hasty_ = plan && std::strcmp(plan, "fast") == 0;
  lower();
  place_storages();
  next_task_ = std::make_unique<std::atomic<int64_t>[]>(steps_.size());
  barrier_.reset(kind.team);
}

void Slice::work(int index, const Run& run, float* memory) {
  const Scratch scratch = scratch_of(memory + index * scratch_floats());
  for (size_t i = 0; i < steps_.size(); i++) {
    run_step(*steps_[i], i, steps_[i]->tasks(), index, run, scratch);
    barrier_.wait();
  }
}

void Slice::begin() {
  for (size_t i = 0; i < steps_.size(); i++) next_task_[i].store(0, std::memory_order_relaxed);
}

void Slice::run_step(const Step& step, size_t index, int64_t tasks, int worker, const Run& run, const Scratch& scratch) {
  step.clear_borders(run.arena, worker, kind.team);
  if (kind.team == 1) {
    for (int64_t task = 0; task < tasks; task++) step.run(task, run, scratch);
    return;
  }
  // Some tasks at a time, so that a worker mostly reads what it has just read.
  const int64_t stride = std::max<int64_t>(1, tasks / (kind.team * 8));
  for (;;) {
    const int64_t begin = next_task_[index].fetch_add(stride, std::memory_order_relaxed);
    if (begin >= tasks) return;
    for (int64_t task = begin; task < std::min(begin + stride, tasks); task++) step.run(task, run, scratch);
  }
}

Scratch Slice::scratch_of(float* memory) const {
  float* partial = memory + round_up(scratch_size_.gathered);
  return {memory, partial, partial + round_up(scratch_size_.partial)};
}

ptrdiff_t Slice::scratch_floats() const {
  return round_up(scratch_size_.gathered) + round_up(scratch_size_.partial) + round_up(scratch_size_.t) + 16;
}

int64_t Slice::packed_bytes() const {
  int64_t bytes = 0;
  for (const auto& step : steps_) bytes += step->packed_bytes();
  return bytes;
}

// The least time of several runs of the first tasks of a step, by the whole team as in a real run.
double Slice::time_step(Team& team, size_t index, int64_t tasks, const Run& run, int repeats) {
  AlignedVector<float> scratch(size_t(kind.team * scratch_floats()));
  const Step& step = *steps_[index];
  double best = 1e30, spent = 0;
  std::atomic<bool> enough{false};
  const std::function<void(int)> work = [&](int worker) {
    const Scratch own = scratch_of(scratch.data() + worker * scratch_floats());
    for (int repeat = 0;; repeat++) {
      if (worker == 0) {
        enough.store(repeat >= repeats && (repeat >= kRepeats || spent > kMilliseconds));
        next_task_[index].store(0);
      }
      const double start = now(kind.team == 1);  // before the others may start, or they could be done before it
      barrier_.wait();
      if (enough.load()) return;
      run_step(step, index, tasks, worker, run, own);
      barrier_.wait();
      if (worker) continue;
      const double took = now(kind.team == 1) - start;
      spent += took;
      best = std::min(best, took);
    }
  };
  if (kind.team == 1)
    work(0);
  else
    team.run(work);
  return best;
}

void Slice::tune_convolution(Team& team, size_t index, ConvStep& conv, const Run& run) {
  const std::string signature = conv.signature();
  const auto known = chosen_.find(signature);
  if (known != chosen_.end()) return conv.choose(known->second);
  std::vector<ConvChoice> all = conv.candidates(), list;
  for (const ConvChoice& c : all)
    if (conv.describe(c).find(forced_) != std::string::npos) list.push_back(c);
  if (list.empty()) list = all;
  if (hasty_) list.resize(1);
  ConvChoice best = list.front();
  double least = 1e30;
  const ScratchSize before = scratch_size_;
  for (const ConvChoice& c : list) {
    if (list.size() == 1) break;
    conv.choose(c);
    scratch_size_ = before;
    scratch_size_.include(conv.scratch());
    // A part of a large convolution says enough.
    const double share = std::min(1.0, kEnoughMacs * kind.team / (double(conv.multiply_adds()) * kind.images));
    const int64_t tasks = std::max<int64_t>(1, int64_t(share * double(conv.tasks())));
    const double took = time_step(team, index, tasks, run, 3) * double(conv.tasks()) / double(tasks);
    if (took < least) least = took, best = c;
  }
  conv.choose(best);
  scratch_size_ = before;
  chosen_[signature] = best;
}

void Slice::tune(Team& team, float* arena) {
  const Shape in = program_.shapes.front(), out = program_.shapes.back();
  const int images = kind.images;
  std::vector<float> noise(hasty_ ? 0 : size_t(images * in.elements()));
  std::vector<float> result(hasty_ ? 0 : size_t(images * out.elements()));
  uint32_t state = 1;
  for (float& x : noise) {
    state = state * 1664525u + 1013904223u;
    x = float(int32_t(state)) * (1.0f / 2147483648.0f);
  }
  const Run run{arena, noise.data(), result.data(), images};
  if (!hasty_) std::fill(arena, arena + arena_floats_, 0.0f);
  for (size_t i = 0; i < steps_.size(); i++) {
    if (convolutions_[i]) tune_convolution(team, i, *convolutions_[i], run);
    scratch_size_.include(steps_[i]->scratch());
    if (!hasty_) steps_[i]->milliseconds = time_step(team, i, steps_[i]->tasks(), run, 2);
  }
}

void Slice::place_storages() {
  // The largest first, each at the lowest place that is free as long as it lives.
  std::vector<Live*> order;
  for (Live& live : storages_) order.push_back(&live);
  std::stable_sort(order.begin(), order.end(),
                   [](const Live* a, const Live* b) { return a->storage->size() > b->storage->size(); });
  std::vector<Live*> placed;  // by offset
  ptrdiff_t end = kGuard;
  for (Live* live : order) {
    ptrdiff_t at = kGuard;
    for (const Live* other : placed) {
      if (other->dies < live->born || live->dies < other->born) continue;
      if (other->storage->offset - at >= live->storage->size()) break;
      at = std::max(at, round_up(other->storage->offset + other->storage->size()));
    }
    live->storage->offset = at;
    end = std::max(end, at + live->storage->size());
    placed.insert(std::upper_bound(placed.begin(), placed.end(), live,
                                   [](const Live* a, const Live* b) { return a->storage->offset < b->storage->offset; }),
                  live);
  }
  arena_floats_ = round_up(end + kGuard);
  if (arena_floats_ > kMostFloats) throw Error("the program needs too much memory");
}

}  // namespace splore
