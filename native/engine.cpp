#include "engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace splore {
namespace {

const Kernels* supported(const std::string& isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && (isa.empty() || isa == "avx512")) return kernels_avx512();
  if (avx2 && (isa.empty() || isa == "avx2")) return kernels_avx2();
#endif
  if (isa.empty() || isa == "generic") return kernels_generic();
  throw Error("this machine has no instruction set '" + isa + "'; expected avx512, avx2 or generic, as far as it has them");
}

}  // namespace

// Holds the engine for one caller. In a child after a fork, a lock that another thread of the parent held would never open,
// and the team's threads are gone: both are made anew, and the old ones left alone.
struct Locked {
  explicit Locked(Engine& engine) : lock(prepared(engine)) {}
  static std::mutex& prepared(Engine& engine) {
    if (engine.process_ != int(getpid())) {
      engine.process_ = int(getpid());
      (void)engine.mutex_.release();
      (void)engine.team_.release();
      engine.mutex_ = std::make_unique<std::mutex>();
    }
    return *engine.mutex_;
  }
  std::lock_guard<std::mutex> lock;
};

Engine::Engine(const splore_program& program, const std::string& isa)
    : program_(check_program(program)), kernels_(supported(isa)), process_(int(getpid())), mutex_(std::make_unique<std::mutex>()) {}

Engine::~Engine() {
  if (process_ != int(getpid())) (void)team_.release();
}

void Engine::force(const std::string& kernel) {
  Locked locked(*this);
  forced_ = kernel;
  slices_.clear();
  cuts_.clear();
}

void Engine::plan(int64_t batch, int threads) {
  Locked locked(*this);
  if (threads != threads_) {
    slices_.clear();
    cuts_.clear();
    threads_ = threads;
  }
  batch_ = batch;
  cut(batch);
}

void Engine::ready() {
  if (!team_ || team_->size() != threads_) {
    team_.reset();
    team_ = std::make_unique<Team>(threads_);
  }
}

float* Engine::memory(ptrdiff_t floats) {
  if (ptrdiff_t(memory_.size()) < floats) {
    memory_ = {};  // before the larger one is there
    memory_.resize(size_t(floats));
  }
  return memory_.data();
}

Slice& Engine::slice(const SliceKind& kind) {
  ready();
  auto found = slices_.find(kind);
  if (found == slices_.end()) {
    auto made = std::make_unique<Slice>(program_, *kernels_, kind, forced_);
    made->tune(*team_, memory(made->arena_floats()));
    const Shape in = program_.shapes.front(), out = program_.shapes.back();
    const std::vector<float> x(size_t(kind.images * in.elements()));
    std::vector<float> y(size_t(kind.images * out.elements()));
    made->milliseconds = 1e30;
    for (int i = 0; i < 5 && !made->hasty(); i++) {
      const auto start = std::chrono::steady_clock::now();
      float* arena = memory(made->workspace());
      run_shared(*made, {arena, x.data(), y.data(), kind.images});
      made->milliseconds = std::min(made->milliseconds, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    found = slices_.emplace(kind, std::move(made)).first;
  }
  return *found->second;
}

const Engine::Cut& Engine::cut(int64_t batch) {
  const auto known = cuts_.find(batch);
  if (known != cuts_.end()) return known->second;
  const int lanes = kernels_->lanes;
  Cut cut;
  const int64_t full = batch / lanes;
  cut.rest = int(batch % lanes);
  cut.alone = full / threads_ * threads_;
  cut.shared = full - cut.alone;
  if (cut.alone) slice({false, lanes, 1});
  if (cut.shared) slice({false, lanes, threads_});
  if (cut.rest) {
    cut.rest_pixels = cut.rest <= lanes / 4 || (cut.rest < lanes * 3 / 4 && slice({true, cut.rest, threads_}).milliseconds < slice({false, lanes, threads_}).milliseconds);
    slice(cut.rest_pixels ? SliceKind{true, cut.rest, threads_} : SliceKind{false, lanes, threads_});
  }
  return cuts_[batch] = cut;
}

void Engine::run_shared(Slice& slice, const Run& run) {
  slice.begin();
  float* scratch = run.arena + slice.arena_floats();
  const std::function<void(int)> work = [&](int index) { slice.work(index, run, scratch); };
  if (slice.kind.team == 1)
    work(0);
  else
    team_->run(work);
}

void Engine::run(const float* in, float* out, int64_t batch) {
  if (batch == 0) return;
  Locked locked(*this);
  ready();
  const Cut& cut = this->cut(batch);
  const int lanes = kernels_->lanes;
  const int64_t in_size = program_.shapes.front().elements(), out_size = program_.shapes.back().elements();
  int64_t done = 0;
  if (cut.alone) {
    Slice& alone = slice({false, lanes, 1});
    const ptrdiff_t each = alone.workspace();
    float* arenas = memory(each * threads_);
    std::atomic<int64_t> next{0};
    const std::function<void(int)> work = [&](int index) {
      float* arena = arenas + index * each;
      for (int64_t i; (i = next.fetch_add(1)) < cut.alone;)
        alone.work(0, {arena, in + i * lanes * in_size, out + i * lanes * out_size, lanes}, arena + alone.arena_floats());
    };
    team_->run(work);
    done = cut.alone * lanes;
  }
  for (int64_t i = 0; i < cut.shared; i++, done += lanes) {
    Slice& shared = slice({false, lanes, threads_});
    run_shared(shared, {memory(shared.workspace()), in + done * in_size, out + done * out_size, lanes});
  }
  if (cut.rest) {
    Slice& rest = slice(cut.rest_pixels ? SliceKind{true, cut.rest, threads_} : SliceKind{false, lanes, threads_});
    run_shared(rest, {memory(rest.workspace()), in + done * in_size, out + done * out_size, cut.rest});
  }
}

int64_t Engine::workspace_bytes() {
  Locked locked(*this);
  ptrdiff_t floats = 0;
  for (const auto& [kind, slice] : slices_) floats = std::max(floats, slice->workspace() * (kind.team == 1 ? threads_ : 1));
  return floats * 4;
}

int64_t Engine::packed_bytes() {
  Locked locked(*this);
  int64_t bytes = 0;
  for (const auto& [kind, slice] : slices_) bytes += slice->packed_bytes();
  return bytes;
}

std::string Engine::table() {
  Locked locked(*this);
  std::string text = "[";
  const auto known = cuts_.find(batch_);
  if (known == cuts_.end()) return "[]";
  const Cut& cut = known->second;
  const int lanes = kernels_->lanes;
  // The slice that most images go through.
  const SliceKind kind = cut.alone ? SliceKind{false, lanes, 1} : cut.shared ? SliceKind{false, lanes, threads_} : SliceKind{cut.rest_pixels, cut.rest_pixels ? cut.rest : lanes, threads_};
  Slice& slice = *slices_.at(kind);
  for (const auto& step : slice.steps()) {
    const double macs = double(step->multiply_adds()) * kind.images;
    char row[400];
    std::snprintf(row, sizeof row, "%s\n{\"op\": %d, \"kernel\": \"%s\", \"images\": %d, \"threads\": %d, \"ms\": %.5f, \"macs\": %.0f, \"gmacs_per_s\": %.3f}",
                  text.size() > 1 ? "," : "", step->op, step->kernel().c_str(), kind.images, kind.team, step->milliseconds, macs,
                  step->milliseconds > 0 ? macs / step->milliseconds / 1e6 : 0.0);
    text += row;
  }
  return text + "\n]";
}

}  // namespace splore
