// Row fusion: two convolutions, one behind the other, run row by row of their tiles by one thread, so that what the first makes
// is read while it is still in the cache.
#pragma once

#include <vector>

#include "lowering.h"

namespace splore {

// Marks the steps that may be fused with the next one: where the map between two convolutions would not stay in the cache.
void mark_fusible(std::vector<SliceStep>& steps);

// The reader takes each row of its tiles as soon as the maker has made what that needs.
void run_fused(const ConvStep& maker, const ConvStep& reader, const Run& run, const Scratch& scratch);

}  // namespace splore
