#include "engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

namespace splore {
namespace {

constexpr size_t kMostSlices = 8;

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
    : program_(check_program(program)),
      kernels_(supported(isa)),
      process_(int(getpid())),
      mutex_(std::make_unique<std::mutex>()) {}

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

// The kinds of slices of a cut, in the order in which they run.
std::vector<SliceKind> Engine::kinds(const Cut& cut) const {
  std::vector<SliceKind> kinds;
  if (cut.alone) kinds.push_back({false, kernels_->lanes, 1});
  if (cut.shared) kinds.push_back({false, kernels_->lanes, threads_});
  if (cut.rest) kinds.push_back({cut.rest_pixels, cut.rest_pixels ? cut.rest : kernels_->lanes, threads_});
  return kinds;
}

float* Engine::memory(ptrdiff_t floats) {
  if (ptrdiff_t(memory_.size()) < floats) {
    AlignedVector<float>().swap(memory_);  // before the larger one is there
    memory_.resize(size_t(floats));
  }
  return memory_.data();
}

Slice& Engine::slice(const SliceKind& kind) {
  ready();
  auto found = slices_.find(kind);
  if (found == slices_.end()) {
    // Each slice has its own packed weights: a caller of many batch sizes must not gather them all.
    if (slices_.size() >= kMostSlices) slices_.clear();
    auto made = std::make_unique<Slice>(program_, *kernels_, kind, forced_);
    made->tune(*team_, memory(made->arena_floats()));
    found = slices_.emplace(kind, std::move(made)).first;
  }
  return *found->second;
}

// The ways worth timing to cut what is left when every thread has had its full slices.
std::vector<Engine::Cut> Engine::tails(int64_t images) const {
  const int lanes = kernels_->lanes;
  std::vector<Cut> list;
  if (images > lanes) list.push_back({(images + lanes - 1) / lanes, 0, 0, true});
  for (const bool pixels : {false, true}) {
    const Cut cut{0, images / lanes, int(images % lanes), pixels};
    // Few images don't fill the lanes, and many nearly do.
    if (pixels ? cut.rest && cut.rest < lanes * 3 / 4 : cut.rest == 0 || cut.rest > lanes / 4) list.push_back(cut);
  }
  return list;
}

// Milliseconds of so many images: the least of some runs.
double Engine::time(const Cut& cut, int64_t images) {
  const std::vector<float> x(size_t(images * program_.shapes.front().elements()));
  std::vector<float> y(size_t(images * program_.shapes.back().elements()));
  double best = 1e30;
  for (int i = 0; i < 6; i++) {  // the first one plans
    const auto start = std::chrono::steady_clock::now();
    run(cut, x.data(), y.data(), images);
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

const Engine::Cut& Engine::cut(int64_t batch) {
  const auto known = cuts_.find(batch);
  if (known != cuts_.end()) return known->second;
  const int64_t alone = batch / kernels_->lanes / threads_ * threads_, images = batch - alone * kernels_->lanes;
  Cut best;
  if (images) {
    const std::vector<Cut> list = tails(images);
    std::set<SliceKind> kept;
    for (const auto& [kind, slice] : slices_) kept.insert(kind);
    best = list.front();
    double least = 1e30;
    for (const Cut& cut : list) {
      if (list.size() == 1 || hasty()) break;
      const double took = time(cut, images);
      if (took < least) least = took, best = cut;
    }
    for (const SliceKind& kind : kinds(best)) kept.insert(kind);
    for (auto tried = slices_.begin(); tried != slices_.end();)
      tried = kept.count(tried->first) ? std::next(tried) : slices_.erase(tried);
  }
  best.alone += alone;
  for (const SliceKind& kind : kinds(best)) slice(kind);
  return cuts_[batch] = best;
}

void Engine::run(const float* in, float* out, int64_t batch) {
  if (batch == 0) return;
  Locked locked(*this);
  ready();
  run(cut(batch), in, out, batch);
}

void Engine::run(const Cut& cut, const float* in, float* out, int64_t batch) {
  const int lanes = kernels_->lanes;
  const int64_t in_size = program_.shapes.front().elements(), out_size = program_.shapes.back().elements();
  if (cut.alone) {
    Slice& alone = slice({false, lanes, 1});
    const ptrdiff_t each = alone.workspace();
    const int workers = int(std::min<int64_t>(threads_, cut.alone));
    float* arenas = memory(each * workers);
    std::atomic<int64_t> next{0};
    const std::function<void(int)> work = [&](int index) {
      if (index >= workers) return;
      float* arena = arenas + index * each;
      for (int64_t i; (i = next.fetch_add(1)) < cut.alone;) {
        const int images = int(std::min<int64_t>(lanes, batch - i * lanes));
        alone.work(0, {arena, in + i * lanes * in_size, out + i * lanes * out_size, images}, arena + alone.arena_floats());
      }
    };
    team_->run(work);
  }
  int64_t done = cut.alone * lanes;
  for (int64_t i = 0; i < cut.shared; i++, done += lanes)
    run_shared({false, lanes, threads_}, in + done * in_size, out + done * out_size, lanes);
  if (cut.rest) run_shared(kinds(cut).back(), in + done * in_size, out + done * out_size, cut.rest);
}

void Engine::run_shared(const SliceKind& kind, const float* in, float* out, int images) {
  Slice& slice = this->slice(kind);
  const Run run{memory(slice.workspace()), in, out, images};
  slice.begin();
  const std::function<void(int)> work = [&](int index) { slice.work(index, run, run.arena + slice.arena_floats()); };
  if (kind.team == 1)
    work(0);
  else
    team_->run(work);
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

// 10^9 multiply-adds a second of one thread, the most of several tries.
double Engine::peak() const {
  constexpr int64_t rounds = 40000;
  double best = 1e30;
  volatile float used = 0.0f;  // or there would be no need to reckon
  for (int i = 0; i < 50; i++) {
    const auto start = std::chrono::steady_clock::now();
    used = kernels_->multiply_adds(rounds);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  (void)used;
  return double(rounds * kChains * kernels_->lanes) / best * 1e-9;
}

std::string Engine::table() {
  Locked locked(*this);
  std::string text = "[";
  const auto known = cuts_.find(batch_);
  if (known == cuts_.end()) return "[]";
  const SliceKind kind = kinds(known->second).front();  // that most images go through
  for (const auto& step : slice(kind).steps()) {
    if (text.size() > 1) text += ",";
    auto add = [&](const char* name, double value) {
      text += std::string("\"") + name + "\": " + std::to_string(std::llround(value)) + ", ";
    };
    text += "\n{";
    add("op", step->op);
    add("images", kind.images);
    add("threads", kind.team);
    add("nanoseconds", step->milliseconds * 1e6);
    add("macs", double(step->multiply_adds()) * kind.images);
    text += "\"kernel\": \"" + step->kernel() + "\"}";
  }
  return text + "\n]";
}

}  // namespace splore
