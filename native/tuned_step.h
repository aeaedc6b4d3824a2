// A step that can be done in several ways, of which the tuner times those that are worth it.
#pragma once

#include <vector>

#include "packings.h"
#include "step.h"

namespace splore {

struct ConvChoice {
  int tile = 0;                // of kTiles
  int64_t block_channels = 0;  // input channels of a block
  int parts = 1;               // that the output channels are cut into
  bool dense = false;          // all parts of the weight folded; else the sparse stream
  bool gathered = false;       // the tile is copied into columns first
  bool pattern = false;        // the stream of some output channels at once
  bool inside = false;         // the stream, without what comes from the border
  bool winograd = false;       // B by Winograd's transform
  bool dense_finish = false;   // A by the dense kernel; else as more entries in each row of the stream
};

class TunedStep : public Step {
 public:
  using Step::Step;

  // The choices worth timing, a sound one first.
  virtual std::vector<ConvChoice> candidates() const = 0;
  virtual void choose(const ConvChoice& choice) = 0;
  virtual const ConvChoice& choice() const = 0;
  virtual std::string describe(const ConvChoice& choice) const = 0;
  // Steps with one signature are best served by one choice.
  virtual std::string signature() const = 0;
  // The choice stands: shares its packing with other slices, and lets go of what only choosing needed.
  virtual void settle(Packings& packings) = 0;
};

}  // namespace splore
