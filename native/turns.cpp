// Two convolutions in turns, row by row of their tiles: what the first makes is read while it is still in the cache.
#include <algorithm>

#include "slice.h"

namespace splore {
namespace {

constexpr double kWorthwhile = 0.02;  // share of their time that two convolutions must gain
constexpr int kRepeats = 4;

}  // namespace

bool ConvStep::can_take_turns(const ConvStep& reader) const {
  // What the reader writes over must not be what this one still reads, nor what its last tiles, which reach back, write again.
  const Storage* over = reader.residual_ == &reader.map_ ? reader.residual_ : nullptr;
  return (&reader.in_ == out || &reader.in_ == second) && !(over && (over == &in_ || over == residual_ || over == out));
}

void ConvStep::run_tile_row(int64_t row, const Run& run, const Scratch& scratch) const {
  for (int64_t i = 0; i < tiles_across_; i++) this->run(row * tiles_across_ + i, run, scratch);
}

// Through its window, and one row for each row as its residual.
int64_t ConvStep::rows_needed(int64_t tile_row, const ConvStep& maker) const {
  const Window& w = op_.window;
  const int64_t last = place(tile_row * tiles_across_).y + kTiles[choice_.tile].rows - 1;
  const int64_t read = std::min(in_.shape.h, last * w.stride_h + (w.kernel_h - 1) * w.dilation_h - w.top + 1);
  return residual_ == maker.out ? std::max(read, last + 1) : read;
}

int64_t ConvStep::rows_made(int64_t tile_row) const {
  const int64_t rows = place(tile_row * tiles_across_).y + kTiles[choice_.tile].rows;
  return pooled_ ? rows / 2 : rows;
}

// Two convolutions may take turns where one thread runs both and the map between them would not stay in its cache.
void Slice::pair_up() {
  paired_.assign(steps_.size(), false);
  if (layout_.pixels || kind.team > 1) return;
  for (size_t i = 0; i + 1 < steps_.size(); i++) {
    const ConvStep *maker = convolutions_[i], *reader = convolutions_[i + 1];
    if (maker && reader && maker->can_take_turns(*reader) && (hasty_ || steps_[i]->out->size() > kStays)) paired_[i++] = true;
  }
}

// The second convolution takes each row of its tiles as soon as the first has made what that reads.
void Slice::run_pair(size_t first, const Run& run, const Scratch& scratch) {
  const ConvStep &maker = *convolutions_[first], &reader = *convolutions_[first + 1];
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

double Slice::time_pair(size_t first, bool in_turns, const Run& run) {
  AlignedVector<float> memory(static_cast<size_t>(scratch_floats()));
  const Scratch scratch = scratch_of(memory.data());
  double best = 1e30;
  for (int repeat = 0; repeat < kRepeats; repeat++) {
    const double start = now(true);
    if (in_turns)
      run_pair(first, run, scratch);
    else
      for (const size_t i : {first, first + 1}) run_step(i, *steps_[i], steps_[i]->tasks(), 0, run, scratch);
    best = std::min(best, now(true) - start);
  }
  return best;
}

void Slice::choose_turns(const Run& run) {
  for (size_t i = 0; i < steps_.size(); i++) {
    if (!paired_[i]) continue;
    const double gain = hasty_ ? 1 : 1 - time_pair(i, true, run) / time_pair(i, false, run);
    if (gain < kWorthwhile) continue;
    for (ConvStep* conv : {convolutions_[i], convolutions_[i + 1]}) {
      conv->in_turns = true;
      conv->milliseconds *= 1 - gain;
    }
  }
}

}  // namespace splore
