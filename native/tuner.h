// The tuner of a slice: times the candidates of every convolution, and both ways to run those that may be fused.
#pragma once

#include <map>
#include <string>

#include "packings.h"
#include "slice.h"

namespace splore {

bool fast_plan();  // SPLORE_PLAN=fast: no timing

class Tuner {
 public:
  // `forced`: only kernels whose description contains it, where there are any. Without a team nothing is timed, and the first
  // of all candidates taken.
  Tuner(Slice& slice, const Program& program, Team* team, Packings& packings, std::string forced);
  // In order, on noise.
  void tune();

 private:
  void tune(size_t step);
  ConvChoice fastest(TunedStep& conv, const Step& before);
  double time_choice(TunedStep& conv, const ConvChoice& choice, const Step& before);
  double time_step(const Step& step, int64_t tasks, const Step* before);
  void choose_row_fusion();
  double time_fused(size_t first, bool fused);
  double time_slice();
  void on_team(const std::function<void(int)>& work);

  Slice& slice_;
  Team* const team_;
  Packings& packings_;
  const std::string forced_;
  const bool alone_;  // one thread works
  std::vector<SliceStep>& steps_;
  AlignedVector<float> arena_, noise_, result_;
  Run run_{};
  Meeting meeting_;
  std::map<std::string, ConvChoice> chosen_;  // by the signature of a convolution
};

}  // namespace splore
