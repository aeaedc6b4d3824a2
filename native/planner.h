// The planner of an engine: which slices a batch is cut into, and which of them are worth keeping.
//
// A batch size is planned once, by timing, when somebody asks for that. Every other size is put together of the slices that there
// are, by the time that each takes, so that no run ever waits for timing but the very first.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "execution.h"
#include "packings.h"

namespace splore {

struct PlanOptions {
  int threads = 1;
  bool deterministic = false;  // one kind of slice for every image, untimed
  int64_t most_bytes = 0;  // of packed weights: where plans hold so many, no new slices are made
};

class Planner {
 public:
  Planner(const Program& program, const Kernels& kernels, const PlanOptions& options);

  // Plans a batch size, unless that is done, or (`first`) any is. Waits while another engine plans. Not under the lock.
  void plan(int64_t batch, bool first = false);
  // For tests: forgets all plans, and keeps, for later ones, only those kernels whose description contains `kernel`.
  void force(const std::string& kernel);

  // Under the lock: the plan of a batch, or null before the first plan.
  std::shared_ptr<const Plan> find(int64_t batch);
  bool is_planned(int64_t batch) const { return plans_.count(batch) != 0; }
  size_t slices() const { return slices_.size(); }
  // Of the largest of all plans.
  ptrdiff_t most_workspace() const { return most_workspace_; }

  // Of the weights as the slices have packed them, each packing once.
  int64_t packed_bytes() const { return packed_bytes_; }

  const PlanOptions options;

 private:
  struct Cut {  // images in slices of a kind
    SliceKind kind;
    int64_t images;
  };
  using Slices = std::map<SliceKind, std::shared_ptr<const Slice>>;
  int64_t full_images(int64_t batch) const;
  std::vector<std::vector<Cut>> ways(int64_t images) const;
  Plan tuned(const std::vector<Cut>& cuts, Slices& slices, Team& team);
  double time(const Plan& plan, int64_t images, Team& team) const;
  Plan compose(int64_t batch) const;

  const Program& program_;
  const Kernels& kernels_;
  std::string forced_;
  Slices slices_;
  Packings packings_;
  int64_t packed_bytes_ = 0;
  ptrdiff_t most_workspace_ = 0;
  std::map<int64_t, std::shared_ptr<const Plan>> plans_;  // that were timed
  std::map<int64_t, std::shared_ptr<const Plan>> composed_;  // of slices of other plans
};

}  // namespace splore
