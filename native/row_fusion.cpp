#include "row_fusion.h"

#include "tuner.h"

namespace splore {

void mark_fusible(std::vector<SliceStep>& steps) {
  const bool every = fast_plan();
  for (size_t i = 0; i + 1 < steps.size(); i++) {
    const ConvStep *maker = steps[i].conv, *reader = steps[i + 1].conv;
    if (maker && reader && maker->can_fuse_rows(*reader) && (every || !maker->out->stays_in_cache())) steps[i++].may_fuse = true;
  }
}

void run_fused(const ConvStep& maker, const ConvStep& reader, const Run& run, const Scratch& scratch) {
  maker.clear_borders(run.arena, 0, 1);
  reader.clear_borders(run.arena, 0, 1);
  int64_t next = 0, made = 0;
  const auto make = [&] {
    maker.run_tile_row(next, run, scratch);
    made = maker.rows_made(next++);
  };
  for (int64_t row = 0; row < reader.tile_rows(); row++) {
    while (made < reader.rows_needed(row, maker)) make();
    reader.run_tile_row(row, run, scratch);
  }
  while (next < maker.tile_rows()) make();  // what only others read
}

}  // namespace splore
