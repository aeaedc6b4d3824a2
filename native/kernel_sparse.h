// The sparse kernel: output channel after output channel, a stream of non-zeros for each.
#pragma once

#include "kernel_tile.h"

namespace splore {
namespace {

// The input of the next block, or of the next tile: it is brought into the second-level cache while this one is summed.
struct Ahead {
  const float* x = nullptr;
  const int32_t* offsets = nullptr;
  int channels = 0, taps = 1;
};

// The first tap and the last one of a channel: together they see nearly all that the window does.
template <int R, int C, int STEP>
SPLORE_INLINE void prefetch(const Ahead& ahead, ptrdiff_t pitch, int channel) {
  const Corner<R, C, STEP> x(ahead.x, pitch);
  for (int tap = 0; tap < ahead.taps; tap += ahead.taps > 1 ? ahead.taps - 1 : 1) {
    const ptrdiff_t offset = ahead.offsets[channel * ahead.taps + tap];
#pragma GCC unroll 16
    for (int v = 0; v < R * C; v++) __builtin_prefetch(x.place(v, offset), 0, 2);
  }
}

constexpr int kLine = 64 / sizeof(Entry);
constexpr int kEntriesAhead = 32 * kLine;  // half a page: the processor's own prefetch stops at the end of each

// The entries of the taps from TAP on, for the outputs that see more than the border through them.
template <int TAP, int R, int C, int STEP, int U>
SPLORE_INLINE const Entry* add_inside(const Entry* entry, const int32_t* counts, const Corner<R, C, STEP>& x,
                                      Vec (&sum)[U][R * C]) {
  if constexpr (TAP < kInsideTaps) {
    constexpr int T = R * C, down = TAP / 3 - 1, right = TAP % 3 - 1;
    const auto add = [&](Vec(&to)[T], const Entry& e) __attribute__((always_inline)) {
      const Vec w = broadcast(e.value);
      const ptrdiff_t offset = e.offset;
#pragma GCC unroll 16
      for (int v = 0; v < R * C; v++) {
        const int row = v / C + down, column = v % C + right;
        if (row >= 0 && row < R && column >= 0 && column < C) to[v] += x.at(v, offset) * w;
      }
    };
    // One loop, for it is short, and where it ends is rarely foreseen.
    for (const Entry* end = entry + counts[TAP]; entry < end; entry++) add(sum[TAP % U], *entry);
    entry = add_inside<TAP + 1>(entry, counts, x, sum);
  }
  return entry;
}

// Row after row of S: a broadcast, an offset and T multiply-adds for each non-zero. Few vectors would wait for each other,
// so there U entries go to sums of their own.
template <int R, int C, int STEP>
SPLORE_INLINE void sparse_rows(const SparseBlock& block, const Corner<R, C, STEP>& x, const Store<R, C>& sink, const float* a,
                               int rank, const float* t, const Ahead& ahead, ptrdiff_t pitch) {
  constexpr int T = R * C;
  constexpr int U = T >= 6 ? 1 : T >= 3 ? 2 : T == 2 ? 4 : 8;
  const Entry* entry = block.entries;
  int64_t fetched = 0;
  for (int i = 0; i < block.row_count; i++) {
    for (; fetched * block.row_count < int64_t(i + 1) * ahead.channels; fetched++)
      prefetch<R, C, STEP>(ahead, pitch, int(fetched));
    if (i + kRowsAhead < block.row_count) sink.prefetch(block.rows[i + kRowsAhead].channel);
    const int channel = block.rows[i].channel;
    Vec sum[U][T];
    sink.template start<0>(channel, sum[0]);
#pragma GCC unroll 8
    for (int u = 1; u < U; u++)
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[u][v] = Vec{};
    const auto add = [&](Vec(&to)[T], const Entry& e) __attribute__((always_inline)) {
      const Vec w = broadcast(e.value);
      const ptrdiff_t offset = e.offset;
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) to[v] += x.at(v, offset) * w;
    };
    const Entry* end = entry + block.rows[i].entries;
    if (sink.args.fetch_entries)
      for (const Entry* line = entry; line < end; line += kLine) __builtin_prefetch(line + kEntriesAhead, 0, 2);
    if constexpr (STEP == 1 && may_be_inside(R, C))
      if (block.tap_counts) entry = add_inside<0>(entry, block.tap_counts + ptrdiff_t(i) * kInsideTaps, x, sum);
    if constexpr (U > 1)
      for (; end - entry >= U; entry += U)
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) add(sum[u], entry[u]);
    for (; entry < end; entry++) add(sum[0], *entry);
    for (int j = 0; j < rank; j++) {
      const Vec w = broadcast(a[ptrdiff_t(channel) * rank + j]);
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[0][v] += load(t + (ptrdiff_t(j) * T + v) * L) * w;
    }
#pragma GCC unroll 8
    for (int u = 1; u < U; u++)
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[0][v] += sum[u][v];
    sink.template finish<0>(channel, sum[0]);
  }
}

}  // namespace
}  // namespace splore
