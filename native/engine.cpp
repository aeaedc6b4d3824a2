#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>

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

constexpr int64_t kLeastPlanBytes = int64_t(256) << 20;

// Where nobody says what plans may hold: several times what the program itself does.
PlanOptions bounded(PlanOptions options, const splore_program& program) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < program.array_count; i++) bytes += 4 * program.arrays[i].count;
  if (options.most_bytes <= 0) options.most_bytes = std::max(kLeastPlanBytes, 4 * bytes);
  return options;
}

}  // namespace

Engine::Engine(const splore_program& program, const std::string& isa, const PlanOptions& options)
    : program_(check_program(program)), kernels_(supported(isa)), planner_(program_, *kernels_, bounded(options, program)) {}

// What one call holds: the plan, a context and a team.
class Engine::Call {
 public:
  Call(Engine& engine, int64_t batch) : engine_(engine), plan_(engine.planner_.find(batch)) {
    {
      std::lock_guard<std::mutex> lock(shared().mutex);
      if (!engine.contexts_.empty()) {
        context_ = std::move(engine.contexts_.back());
        engine.contexts_.pop_back();
      }
      engine.last_batch_ = batch;
    }
    if (!context_) context_ = std::make_unique<Context>();
  }
  ~Call() {
    std::lock_guard<std::mutex> lock(shared().mutex);
    try {
      engine_.contexts_.push_back(std::move(context_));
    } catch (const std::bad_alloc&) {  // the next caller makes another one
    }
  }
  void run(const float* in, float* out) {
    Team team(engine_.planner_.options.threads, Team::kFair);
    splore::run(*plan_, engine_.program_, in, out, team, *context_);
  }

 private:
  Engine& engine_;
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<Context> context_;
};

void Engine::plan(int64_t batch) {
  planner_.plan(batch);
  std::lock_guard<std::mutex> lock(shared().mutex);
  last_batch_ = batch;
}

void Engine::run(const float* in, float* out, int64_t batch) {
  if (batch > 0) Call(*this, batch).run(in, out);
}

void Engine::take_plans(const std::string& text, bool replan) {
  try {
    if (!planner_.options.deterministic) load_plans(text);
  } catch (const Error&) {
    if (!replan) return;
    for (const int64_t batch : batches_of(text)) plan(batch);
  }
}

int64_t Engine::workspace_bytes() const {
  std::lock_guard<std::mutex> lock(shared().mutex);
  return int64_t(planner_.most_workspace()) * 4;
}

int64_t Engine::packed_bytes() const {
  std::lock_guard<std::mutex> lock(shared().mutex);
  return planner_.packed_bytes();
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
  std::shared_ptr<const Plan> plan;
  std::string text = "{";
  const auto add = [&](const char* name, double value) {
    text += std::string("\"") + name + "\": " + std::to_string(std::llround(value)) + ", ";
  };
  int64_t batch;
  {
    std::lock_guard<std::mutex> lock(shared().mutex);
    batch = last_batch_;
  }
  if (batch) plan = planner_.find(batch);
  {
    std::lock_guard<std::mutex> lock(shared().mutex);
    add("batch", double(batch));
    add("timed", planner_.is_timed());
    add("planned", planner_.is_planned(batch));
    add("slices", double(planner_.slices()));
    add("packed_bytes", double(planner_.packed_bytes()));
    add("most_bytes", double(planner_.options.most_bytes));
  }
  text += "\"steps\": [";
  if (plan && !plan->empty()) {
    const Slice& slice = *plan->front().slice;  // that most images go through
    for (const SliceStep& entry : slice.steps()) {
      const Step& step = *entry.step;
      text += &entry == &slice.steps().front() ? "\n{" : ",\n{";
      add("op", step.op);
      add("images", slice.kind.images);
      add("threads", slice.kind.team);
      add("nanoseconds", step.milliseconds * 1e6);
      add("macs", double(step.multiply_adds()) * slice.kind.images);
      text += "\"kernel\": \"" + step.kernel() + "\"}";
    }
  }
  return text + "]}";
}

}  // namespace splore
