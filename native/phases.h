// What a convolution with a stride reads in the planar layout: the phases of its input. For each remainder that the taps' rows
// and columns leave by the stride, a phase is the map of every such pixel, of the size of the outputs. A tap is then one of the
// phases, shifted, as without a stride, and nothing has to be gathered.
#pragma once

#include "step.h"

namespace splore {

class Phases {
 public:
  // Whether a convolution reads so: its outputs are the map at every stride.
  static bool serve(const Window& window, const Shape& in, const Shape& out, const Layout& layout);
  explicit Phases(const Window& window);

  struct Tap {
    int64_t phase;        // of a channel's
    int64_t row, column;  // by which it is shifted
  };
  Tap tap(int64_t row, int64_t column) const;  // of the window
  int64_t count() const { return int64_t(rows_.remainders.size() * columns_.remainders.size()); }
  Border border() const;  // that the taps reach
  // Copies channel c, of the images of a run.
  void copy(const Storage& in, const Storage& phases, int64_t c, const Run& run) const;

 private:
  // The taps along one side: their remainders, in rising order, and of each tap which of these it has, and its shift.
  struct Side {
    Side(int64_t kernel, int64_t stride, int64_t dilation, int64_t before);
    int64_t stride;
    std::vector<int64_t> remainders, phase, shift;
  };
  const Side rows_, columns_;
};

std::unique_ptr<Step> phase_step(int index, const Op& op, const Storage& in, const Storage& out);

}  // namespace splore
