// The planner of an engine: which slices a batch is cut into, and which of them are worth keeping.
//
// A batch size is planned once, by timing, when somebody asks for that. Every other size is put together of the slices that there
// are, by the time that each takes. Where there are none that suit it, it gets untimed ones, which the first timed plan replaces.
// So no run ever waits for timing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "saved_plan.h"

namespace splore {

struct PlanOptions {
  int threads = 1;
  bool deterministic = false;  // one kind of slice for every image, untimed
  int64_t most_bytes = 0;  // of packed weights: where plans hold so many, no new slices are made
};

class Planner {
 public:
  Planner(const Program& program, const Kernels& kernels, const PlanOptions& options);

  // These are not called under the lock.
  // Plans a batch size by timing, unless that is done. Waits while another engine plans.
  void plan(int64_t batch);
  // The plan of a batch, at once.
  std::shared_ptr<const Plan> find(int64_t batch);
  // The timed plans as a text, and those of such a text (saved_plan.h). None where nothing is timed.
  std::string save() const;
  void load(const std::string& text);
  // For tests: forgets all plans, and keeps, for later ones, only those kernels whose description contains `kernel`.
  void force(const std::string& kernel);

  // Under the lock.
  bool is_planned(int64_t batch) const { return plans_.count(batch) != 0; }
  size_t slices() const { return slices_.size(); }
  bool is_timed() const;  // whether any slice is
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
  std::shared_ptr<const Plan> known(int64_t batch) const;  // or null
  bool is_untimed() const;  // all plans of this engine
  int64_t full_images(int64_t batch) const;
  std::vector<std::vector<Cut>> ways(int64_t images) const;
  std::vector<Cut> untimed_cuts(int64_t batch) const;
  Plan tuned(const std::vector<Cut>& cuts, Slices& slices, Team* team);
  double time(const Plan& plan, int64_t images, Team& team) const;
  Plan compose(int64_t batch) const;
  std::shared_ptr<const Plan> composed(int64_t batch, Plan plan);
  void take(const Plan& plan);
  void drop_untimed();  // what was made for want of a plan

  const Program& program_;
  const Kernels& kernels_;
  std::string forced_;
  Slices slices_;
  Packings packings_;
  int64_t packed_bytes_ = 0;
  ptrdiff_t most_workspace_ = 0;
  Plans plans_;  // that were timed
  Plans composed_;  // of slices of other plans, or of untimed ones
};

}  // namespace splore
