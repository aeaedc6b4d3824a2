#include "tuner.h"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "row_fusion.h"

namespace splore {
namespace {

// A step is timed until it has run so often, or for so long, but three times at the least.
constexpr size_t kRepeats = 30;
constexpr double kMilliseconds = 0.6;
constexpr double kEnoughMacs = 2e7;  // of a thread: a part of a large convolution says enough

constexpr double kWorthwhile = 0.02;  // share of their time that two convolutions must gain to be fused
constexpr int kFusedRepeats = 4, kSliceRepeats = 3;

// Milliseconds. A thread that works alone looks at its own time on the processor, which other processes don't disturb.
double now(bool alone) {
  timespec t;
  clock_gettime(alone ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}

bool same_tile(const ConvChoice& a, const ConvChoice& b) {
  return a.tile == b.tile && a.dense == b.dense && a.gathered == b.gathered && a.parts == b.parts && a.pattern == b.pattern &&
         a.inside == b.inside;
}

}  // namespace

bool fast_plan() {
  const char* plan = std::getenv("SPLORE_PLAN");
  return plan && std::strcmp(plan, "fast") == 0;
}

Tuner::Tuner(Slice& slice, const Program& program, Team* team, Packings& packings, std::string forced)
    : slice_(slice),
      team_(team),
      packings_(packings),
      forced_(std::move(forced)),
      alone_(slice.kind.team == 1),
      steps_(slice.lowered_.steps) {
  if (!team_) return;
  arena_.resize(size_t(slice.arena_floats()));
  noise_.resize(size_t(slice.kind.images * program.shapes.front().elements()));
  result_.resize(size_t(slice.kind.images * program.shapes.back().elements()));
  uint32_t state = 1;
  for (float& x : noise_) {
    state = state * 1664525u + 1013904223u;
    x = float(int32_t(state)) * (1.0f / 2147483648.0f);
  }
}

void Tuner::tune() {
  run_ = {arena_.data(), noise_.data(), result_.data(), slice_.kind.images};
  for (size_t i = 0; i < steps_.size(); i++) tune(i);
  choose_row_fusion();
  if (team_) slice_.set_milliseconds(time_slice());
}

void Tuner::tune(size_t i) {
  Step& step = *steps_[i].step;
  const ConvChoice* choice = nullptr;
  if (TunedStep* conv = steps_[i].tuned) {
    const std::string signature = conv->signature();
    auto known = chosen_.find(signature);
    if (known == chosen_.end()) known = chosen_.emplace(signature, fastest(*conv, *steps_[i - 1].step)).first;
    choice = &known->second;
  }
  slice_.settle(i, choice, packings_);
  const Step* before = i && !alone_ ? steps_[i - 1].step.get() : nullptr;
  if (team_) step.milliseconds = time_step(step, step.tasks(), before);
}

// Times each tile with its first block, and then the other blocks of the best tiles.
ConvChoice Tuner::fastest(TunedStep& conv, const Step& before) {
  std::vector<ConvChoice> all = conv.candidates(), list;
  for (const ConvChoice& c : all)
    if (conv.describe(c).find(forced_) != std::string::npos) list.push_back(c);
  if (list.empty()) list = all;
  if (!team_ || list.size() == 1) return list.front();
  std::vector<double> times(list.size());
  double least = 1e30;
  size_t best = 0, leader = 0;
  const auto time = [&](size_t i) {
    times[i] = time_choice(conv, list[i], before);
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

double Tuner::time_choice(TunedStep& conv, const ConvChoice& choice, const Step& before) {
  const ScratchSize size = slice_.scratch_size_;
  conv.choose(choice);
  slice_.scratch_size_.include(conv.scratch());
  const int team = slice_.kind.team;
  const double share = std::min(1.0, kEnoughMacs * team / (double(conv.multiply_adds()) * slice_.kind.images));
  const int64_t tasks = std::max<int64_t>(std::min<int64_t>(conv.tasks(), 4 * team), int64_t(share * double(conv.tasks())));
  const Step* maker = team > 1 && tasks == conv.tasks() ? &before : nullptr;
  const double took = time_step(conv, tasks, maker) * double(conv.tasks()) / double(tasks);
  slice_.scratch_size_ = size;
  return took;
}

void Tuner::on_team(const std::function<void(int)>& work) {
  meeting_.start(slice_.kind.team);
  if (alone_)
    work(0);
  else
    team_->run(work);
}

// The least time of several runs of the first tasks of a step, by the whole team as in a real run: where the step `before` is
// given it runs each time, untimed, and leaves its results in the caches of the threads that made them.
double Tuner::time_step(const Step& step, int64_t tasks, const Step* before) {
  AlignedVector<float> memory(size_t(slice_.kind.team * slice_.scratch_floats()));
  double best = 1e30, spent = 0;
  std::atomic<bool> enough{false};
  on_team([&](int worker) {
    const Scratch scratch = slice_.scratch_of(memory.data() + worker * slice_.scratch_floats());
    for (size_t repeat = 0, round = 0;; repeat++) {
      if (before) {
        slice_.run_step(round++, *before, before->tasks(), worker, run_, scratch, meeting_);
        meeting_.barrier.wait();
      }
      if (worker == 0) enough.store(repeat >= 3 && (repeat >= kRepeats || spent > kMilliseconds));
      const double start = now(alone_);  // before the others may start, or they could be done before it
      meeting_.barrier.wait();
      if (enough.load()) return;
      slice_.run_step(round++, step, tasks, worker, run_, scratch, meeting_);
      meeting_.barrier.wait();
      if (worker) continue;
      const double took = now(alone_) - start;
      spent += took;
      best = std::min(best, took);
    }
  });
  return best;
}

void Tuner::choose_row_fusion() {
  for (size_t i = 0; i < steps_.size(); i++) {
    if (!steps_[i].may_fuse) continue;
    const double gain = !team_ ? 1 : 1 - time_fused(i, true) / time_fused(i, false);
    if (gain < kWorthwhile) continue;
    slice_.fuse(i);
    for (ConvStep* conv : {steps_[i].conv, steps_[i + 1].conv}) conv->milliseconds *= 1 - gain;
  }
}

double Tuner::time_fused(size_t first, bool fused) {
  AlignedVector<float> memory(static_cast<size_t>(slice_.scratch_floats()));
  const Scratch scratch = slice_.scratch_of(memory.data());
  double best = 1e30;
  meeting_.start(1);
  for (int repeat = 0; repeat < kFusedRepeats; repeat++) {
    const double start = now(true);
    if (fused)
      run_fused(*steps_[first].conv, *steps_[first + 1].conv, run_, scratch);
    else
      for (const size_t i : {first, first + 1})
        slice_.run_step(i, *steps_[i].step, steps_[i].step->tasks(), 0, run_, scratch, meeting_);
    best = std::min(best, now(true) - start);
  }
  return best;
}

// Of the whole slice.
double Tuner::time_slice() {
  AlignedVector<float> memory(size_t(slice_.kind.team * slice_.scratch_floats()));
  double best = 1e30;
  for (int repeat = 0; repeat < kSliceRepeats; repeat++) {
    const double start = now(alone_);
    on_team([&](int worker) { slice_.work(worker, run_, memory.data(), meeting_); });
    best = std::min(best, now(alone_) - start);
  }
  return best;
}

}  // namespace splore
