// An engine: a checked program and its plans, for any number of callers at once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "planner.h"

namespace splore {

class Engine {
 public:
  Engine(const splore_program& program, const std::string& isa, const PlanOptions& options);

  void force(const std::string& kernel) { planner_.force(kernel); }
  void plan(int64_t batch);
  void run(const float* in, float* out, int64_t batch);

  std::string save_plans() const { return planner_.save(); }
  void load_plans(const std::string& text) { planner_.load(text); }
  // The plans of a program file. Where they don't fit, and `replan`, plans their sizes by timing.
  void take_plans(const std::string& text, bool replan);

  const Shape& input() const { return program_.shapes.front(); }
  const Shape& output() const { return program_.shapes.back(); }
  const Kernels& kernels() const { return *kernels_; }
  double peak() const;
  double int_peak() const;
  int64_t workspace_bytes() const;
  int64_t packed_bytes() const;
  // The plan of the batch that ran last, or was planned last, as JSON.
  std::string table();

 private:
  class Call;

  const Program program_;
  const Kernels* kernels_;
  Planner planner_;
  int64_t last_batch_ = 0;
  std::vector<std::unique_ptr<Context>> contexts_;  // that no caller has, under the lock
};

}  // namespace splore
