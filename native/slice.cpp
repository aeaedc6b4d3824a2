#include "slice.h"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace splore {
namespace {

constexpr ptrdiff_t kGuard = 256;  // floats before and after the values, for reads that are masked away
constexpr ptrdiff_t kMostFloats = ptrdiff_t(1) << 34;

// A step is timed until it has run so often, or for so long, but three times at the least.
constexpr int kRepeats = 30;
constexpr double kMilliseconds = 0.6;
constexpr double kEnoughMacs = 2e7;  // of a thread: a part of a large convolution says enough

ptrdiff_t round_up(ptrdiff_t x) { return (x + 15) / 16 * 16; }

}  // namespace

double now(bool alone) {
  timespec t;
  clock_gettime(alone ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

Slice::Slice(const Program& program, const Kernels& kernels, const SliceKind& kind, const std::string& forced)
    : kind(kind),
      program_(program),
      kernels_(kernels),
      layout_(kind.pixels, kind.images, kernels.lanes),
      forced_(forced),
      hasty_(hasty()),
      shares_(kind.team) {
  lower();
  pair_up();
  place_storages();
  barrier_.reset(kind.team);
}

bool hasty() {
  const char* plan = std::getenv("SPLORE_PLAN");
  return plan && std::strcmp(plan, "fast") == 0;
}

void Slice::work(int index, const Run& run, float* memory) {
  const Scratch scratch = scratch_of(memory + index * scratch_floats());
  for (size_t i = 0; i < steps_.size(); i++) {
    if (paired_[i] && convolutions_[i]->in_turns) {
      run_pair(i++, run, scratch);
      continue;
    }
    run_step(i, *steps_[i], steps_[i]->tasks(), index, run, scratch);
    barrier_.wait();
  }
}

void Slice::run_step(size_t round, const Step& step, int64_t tasks, int worker, const Run& run, const Scratch& scratch) {
  step.clear_borders(run.arena, worker, kind.team);
  shares_.run(round, tasks, worker, [&](int64_t task) { step.run(task, run, scratch); });
}

void Slice::begin() { shares_.reset(); }

Scratch Slice::scratch_of(float* memory) const {
  float* partial = memory + round_up(scratch_size_.gathered);
  float* t = partial + round_up(scratch_size_.partial);
  return {memory, partial, t, t + round_up(scratch_size_.t)};
}

ptrdiff_t Slice::scratch_floats() const {
  const ScratchSize& size = scratch_size_;
  return round_up(size.gathered) + round_up(size.partial) + round_up(size.t) + round_up(size.outputs) + 16;
}

int64_t Slice::packed_bytes() const {
  int64_t bytes = 0;
  for (const auto& step : steps_) bytes += step->packed_bytes();
  return bytes;
}

// The least time of several runs of the first tasks of a step, by the whole team as in a real run: where the step `before` is
// given it runs each time, untimed, and leaves its results in the caches of the threads that made them.
double Slice::time_step(Team& team, const Step& step, int64_t tasks, const Step* before, const Run& run) {
  AlignedVector<float> memory(size_t(kind.team * scratch_floats()));
  double best = 1e30, spent = 0;
  std::atomic<bool> enough{false};
  shares_.reset();
  const std::function<void(int)> work = [&](int worker) {
    const Scratch scratch = scratch_of(memory.data() + worker * scratch_floats());
    for (size_t repeat = 0, round = 0;; repeat++) {
      if (before) {
        run_step(round++, *before, before->tasks(), worker, run, scratch);
        barrier_.wait();
      }
      if (worker == 0) enough.store(repeat >= 3 && (repeat >= kRepeats || spent > kMilliseconds));
      const double start = now(kind.team == 1);  // before the others may start, or they could be done before it
      barrier_.wait();
      if (enough.load()) return;
      run_step(round++, step, tasks, worker, run, scratch);
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

double Slice::time_choice(Team& team, ConvStep& conv, const ConvChoice& choice, const Step& before, const Run& run) {
  const ScratchSize size = scratch_size_;
  conv.choose(choice);
  scratch_size_.include(conv.scratch());
  const double share = std::min(1.0, kEnoughMacs * kind.team / (double(conv.multiply_adds()) * kind.images));
  const int64_t tasks = std::max<int64_t>(std::min<int64_t>(conv.tasks(), 4 * kind.team), int64_t(share * double(conv.tasks())));
  const Step* maker = kind.team > 1 && tasks == conv.tasks() ? &before : nullptr;
  const double took = time_step(team, conv, tasks, maker, run) * double(conv.tasks()) / double(tasks);
  scratch_size_ = size;
  return took;
}

// Times each tile with its first block, and then the other blocks of the best tiles.
ConvChoice Slice::fastest(Team& team, ConvStep& conv, const Step& before, const Run& run) {
  std::vector<ConvChoice> all = conv.candidates(), list;
  for (const ConvChoice& c : all)
    if (conv.describe(c).find(forced_) != std::string::npos) list.push_back(c);
  if (list.empty()) list = all;
  if (hasty_ || list.size() == 1) return list.front();
  const auto same_tile = [](const ConvChoice& a, const ConvChoice& b) {
    return a.tile == b.tile && a.dense == b.dense && a.gathered == b.gathered && a.parts == b.parts && a.pattern == b.pattern &&
           a.inside == b.inside;
  };
  std::vector<double> times(list.size());
  double least = 1e30;
  size_t best = 0, leader = 0;
  const auto time = [&](size_t i) {
    times[i] = time_choice(team, conv, list[i], before, run);
    if (times[i] < least) least = times[i], best = i;
  };
  for (size_t i = 0; i < list.size(); i++)
    if (i == 0 || !same_tile(list[i], list[i - 1])) time(i);
  const double near = 1.2 * least;
  for (size_t i = 0; i < list.size(); i++)
    if (times[i] > 0)
      leader = i;
    else if (times[leader] < near)
      time(i);
  return list[best];
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
    if (ConvStep* conv = convolutions_[i]) {
      const std::string signature = conv->signature();
      auto known = chosen_.find(signature);
      if (known == chosen_.end()) known = chosen_.emplace(signature, fastest(team, *conv, *steps_[i - 1], run)).first;
      conv->choose(known->second);
      conv->settle();
    }
    scratch_size_.include(steps_[i]->scratch());
    const Step* before = i && kind.team > 1 ? steps_[i - 1].get() : nullptr;
    if (!hasty_) steps_[i]->milliseconds = time_step(team, *steps_[i], steps_[i]->tasks(), before, run);
  }
  choose_turns(run);
}

void Slice::place_storages() {
  // Two steps that may take turns are one time.
  for (Live& live : storages_) {
    if (live.born && paired_[size_t(live.born) - 1]) live.born--;
    if (paired_[size_t(live.dies)]) live.dies++;
  }
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
