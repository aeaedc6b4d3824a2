// The tile of a convolution: R x C vectors of outputs. Where its inputs lie, where its sums start and what becomes of them.
#pragma once

#include "kernel_vector.h"

namespace splore {
namespace {

// Where the vectors of a tile lie: `pitch` floats between rows, STEP vectors between columns.
template <int R, int C, int STEP>
struct Corner {
  const float* row[R];
  Corner(const float* x, ptrdiff_t pitch) {
    for (int r = 0; r < R; r++) row[r] = x + r * pitch;
  }
  SPLORE_INLINE const float* place(int v, ptrdiff_t offset) const { return row[v / C] + offset + (v % C) * STEP * L; }
  SPLORE_INLINE Vec at(int v, ptrdiff_t offset) const { return load(place(v, offset)); }
};

constexpr int kRowsAhead = 8;  // output channels: memory answers later than one is summed

// Starts and finishes the sums of output channels, for N vectors of the tile from V on. Each condition is asked once for all
// of them, outside of the loops.
template <int R, int C>
struct Store {
  static constexpr int T = R * C;
  const ConvArgs& args;
  const ConvTile& tile;
  float* partial;
  bool first, last;

  template <int V, int N>
  SPLORE_INLINE void start(int channel, Vec (&sum)[N]) const {
    if (first) {
      const Vec bias = broadcast(channel < args.n ? args.bias[channel] : 0.0f);
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[v] = bias;
    } else {
      const float* from = partial + (ptrdiff_t(channel) * T + V) * L;
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[v] = load(from + v * L);
    }
  }

  template <int V, int N>
  SPLORE_INLINE void finish(int channel, Vec (&sum)[N]) const {
    if (!last) {
      float* to = partial + (ptrdiff_t(channel) * T + V) * L;
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) store(to + v * L, sum[v]);
      return;
    }
    if (channel >= args.n) return;
    if (tile.residual) {
      const float* from = tile.residual + channel * args.residual_plane;
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[v] += load(from + ((V + v) / C) * args.residual_row + ((V + v) % C) * L);
    }
    if (args.act == SPLORE_RELU) {
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[v] = at_least(sum[v], 0.0f);
    } else if (args.act != SPLORE_NONE) {
      Vec slow[N];  // not `sum` itself: what a function is given the address of does not stay in registers
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) slow[v] = sum[v];
      activate_slowly(slow, N, args.act);
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[v] = slow[v];
    }
    put<V>(sum, tile.out + channel * args.out_plane, args.out_row);
    if (tile.second) {
      const Vec scale = broadcast(args.second_scale[channel]), shift = broadcast(args.second_shift[channel]);
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[v] = at_least(sum[v] * scale + shift, 0.0f);
      put<V>(sum, tile.second + channel * args.second_plane, args.second_row);
    }
  }

  // What the last block reads and writes of a channel beside its sums, where it is not in the cache.
  SPLORE_INLINE void prefetch(int channel) const {
    if (!args.fetch_output || !last || channel >= args.n) return;
    const float* out = tile.out + channel * args.out_plane;
    const float* residual = tile.residual + channel * args.residual_plane;
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) {
      if (tile.residual != tile.out) __builtin_prefetch(out + (v / C) * args.out_row + (v % C) * L, 1);
      if (tile.residual) __builtin_prefetch(residual + (v / C) * args.residual_row + (v % C) * L, 0);
    }
  }

 private:
  template <int V, int N>
  SPLORE_INLINE void put(Vec (&sum)[N], float* out, ptrdiff_t row) const {
    if (tile.mask) {
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) store(out + ((V + v) / C) * row + ((V + v) % C) * L, masked(sum[v], tile.mask + (V + v) * L));
    } else {
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) store(out + ((V + v) / C) * row + ((V + v) % C) * L, sum[v]);
    }
  }
};

// t's rows, kept in the scratch between blocks.
template <int T>
struct Keep {
  float* t;
  bool first;
  SPLORE_INLINE void prefetch(int) const {}
  template <int V, int N>
  SPLORE_INLINE void start(int row, Vec (&sum)[N]) const {
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) sum[v] = first ? Vec{} : load(t + (ptrdiff_t(row) * T + V + v) * L);
  }
  template <int V, int N>
  SPLORE_INLINE void finish(int row, Vec (&sum)[N]) const {
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) store(t + (ptrdiff_t(row) * T + V + v) * L, sum[v]);
  }
};

// The lanes whose index is negative become `fill`.
SPLORE_INLINE void fill_outside(float* out, const int32_t* index, int32_t fill) {
  Ints* to = reinterpret_cast<Ints*>(out);
  *to = *reinterpret_cast<const Ints*>(index) < 0 ? fill - Ints{} : *to;
}

// Copies a block of the tile's input into columns.
template <int R, int C>
void gather_tile(const Gather& g, const ConvBlock& block, const ConvTile& tile, float* out) {
  constexpr int T = R * C;
  for (int c = block.channel_begin; c < block.channel_end; c++) {
    const float* plane = tile.x + c * g.plane;
    for (int tap = 0; tap < g.tap_count; tap++, out += T * L) {
      if (!g.index) {
        for (int v = 0; v < T; v++) store(out + v * L, load(plane + g.taps[tap] + (v / C) * g.row + (v % C) * g.column));
        continue;
      }
      const ptrdiff_t at = tap * g.vectors + tile.vector;
      for (int v = 0; v < T; v++) {
        const int32_t* index = g.index + (at + v) * L;
        const GatherVector how = g.vector[at + v];
        if (how.spread == kRun) {
          const Ints inside = *reinterpret_cast<const Ints*>(index) >= 0;
          store(out + v * L, Vec(Ints(load(plane + how.start)) & inside));
        } else {
          store(out + v * L, how.spread == kNear ? pick_near(plane, how.start, index) : pick(plane, index));
        }
        if (g.fill) fill_outside(out + v * L, index, g.fill);
      }
    }
  }
}

}  // namespace
}  // namespace splore
