#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels_int.h"

namespace splore {
namespace {

#if defined(__x86_64__)
// AVX-VNNI: what older compilers don't know by name.
bool has_avxvnni() {
  unsigned a = 7, b = 0, c = 1, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

// The kernels in float32 together with those in eight bits.
const Kernels* with(const Kernels* kernels, const IntKernels* int8) {
  static std::map<std::string, Kernels> known;
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  Kernels& found = known[int8->name];
  found = *kernels;
  found.name = int8->name, found.int8 = int8;
  return &found;
}

const Kernels* supported(const std::string& isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const auto wanted = [&](const char* name) { return isa.empty() || isa == name; };
  if (avx512 && __builtin_cpu_supports("avx512vnni") && wanted("avx512vnni"))
    return with(kernels_avx512(), int_kernels_avx512vnni());
  if (avx512 && wanted("avx512")) return with(kernels_avx512(), int_kernels_avx512());
  if (avx2 && has_avxvnni() && wanted("avxvnni")) return with(kernels_avx2(), int_kernels_avxvnni());
  if (avx2 && wanted("avx2")) return with(kernels_avx2(), int_kernels_avx2());
#endif
  if (isa.empty() || isa == "generic") return with(kernels_generic(), int_kernels_generic());
  throw Error("this machine has no instruction set '" + isa +
              "'; expected avx512vnni, avx512, avxvnni, avx2 or generic, as far as it has them");
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

namespace {

// 10^9 vectors a second, of kChains a round, by one thread: the most of several tries.
template <class F>
double rate(F multiply_adds) {
  constexpr int64_t rounds = 40000;
  double best = 1e30;
  volatile auto used = multiply_adds(1);  // or there would be no need to reckon
  for (int i = 0; i < 50; i++) {
    const auto start = std::chrono::steady_clock::now();
    used = multiply_adds(rounds);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  (void)used;
  return double(rounds * kChains) / best * 1e-9;
}

}  // namespace

double Engine::peak() const { return rate(kernels_->multiply_adds) * kernels_->lanes; }

double Engine::int_peak() const { return rate(kernels_->int8->multiply_adds) * kernels_->lanes * 4; }

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
      add("bits", step.bits());
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
