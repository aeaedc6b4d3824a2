// The dense kernel: rows of a matrix, four at a time, times the columns of a tile.
#pragma once

#include "kernel_tile.h"

namespace splore {
namespace {

// G rows of a dense matrix, packed by kRowGroup, times N of the tile's vectors, from V on.
template <int G, int V, int N, class Source, class Sink>
SPLORE_INLINE void dense_chunk(const float* weights, const int32_t* offsets, int columns, int row, const Source& x,
                               const Sink& sink) {
  constexpr int U = G * N >= 6 ? 1 : G * N >= 3 ? 2 : 4;  // few sums would wait for each other: take U columns at once
  Vec sum[U][G][N];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) sink.template start<V>(row + g, sum[0][g]);
#pragma GCC unroll 4
  for (int u = 1; u < U; u++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[u][g][v] = Vec{};
  const auto add = [&](Vec(&to)[G][N], int k) __attribute__((always_inline)) {
    const ptrdiff_t offset = offsets[k];
    const float* w = weights + ptrdiff_t(k) * kRowGroup;
    Vec factor[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) factor[g] = broadcast(w[g]);
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
      const Vec value = x.at(V + v, offset);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) to[g][v] += value * factor[g];
    }
  };
  int k = 0;
  if constexpr (U > 1)
    for (; k + U <= columns; k += U)
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) add(sum[u], k + u);
#pragma GCC unroll 2
  for (; k < columns; k++) add(sum[0], k);
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) {
#pragma GCC unroll 4
    for (int u = 1; u < U; u++)
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[0][g][v] += sum[u][g][v];
    sink.template finish<V>(row + g, sum[0][g]);
  }
}

// The sums that the registers hold beside a vector of the input and the factors.
constexpr int kSums = SPLORE_REGISTERS >= 32 ? 28 : 10;

// A tile of T vectors in even chunks, none larger than the registers hold.
template <int G, int V, int T, class Source, class Sink>
SPLORE_INLINE void dense_chunks(const float* weights, const int32_t* offsets, int columns, int row, const Source& x,
                                const Sink& sink) {
  constexpr int most = kSums / G < 16 ? kSums / G : 16;
  constexpr int chunks = (T - V + most - 1) / most;
  constexpr int N = (T - V + chunks - 1) / chunks;
  dense_chunk<G, V, N>(weights, offsets, columns, row, x, sink);
  if constexpr (V + N < T) dense_chunks<G, V + N, T>(weights, offsets, columns, row, x, sink);
}

// G rows of a dense matrix, packed by kRowGroup, for row ROW of a map that is the whole tile: a vector of the input is loaded
// once for all of the taps of its row of the window, and none from beyond the map.
template <int G, int ROW, int R, int C, class Sink>
SPLORE_INLINE void inside_row(const float* weights, const int32_t* offsets, int channels, int row, const float* x,
                              ptrdiff_t pitch, const Sink& sink) {
  Vec sum[G][C];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) sink.template start<ROW * C>(row + g, sum[g]);
  for (int c = 0; c < channels; c++, weights += kInsideTaps * kRowGroup) {
    const float* first = x + offsets[ptrdiff_t(c) * kInsideTaps + kInsideTaps / 2];
#pragma GCC unroll 3
    for (int i = 0; i < 3; i++) {
      if (ROW + i < 1 || ROW + i > R) continue;
      Vec in[C];
#pragma GCC unroll 4
      for (int v = 0; v < C; v++) in[v] = held(load(first + (ROW + i - 1) * pitch + v * L));
#pragma GCC unroll 3
      for (int j = 0; j < 3; j++)
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) {
          const Vec factor = broadcast(weights[(3 * i + j) * kRowGroup + g]);
#pragma GCC unroll 4
          for (int v = 0; v < C; v++)
            if (v + j >= 1 && v + j <= C) sum[g][v] += in[v + j - 1] * factor;
        }
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) sink.template finish<ROW * C>(row + g, sum[g]);
}

template <int G, int ROW, int R, int C, class Sink>
SPLORE_INLINE void inside_rows(const float* weights, const int32_t* offsets, int channels, int row, const float* x,
                               ptrdiff_t pitch, const Sink& sink) {
  inside_row<G, ROW, R, C>(weights, offsets, channels, row, x, pitch, sink);
  if constexpr (ROW + 1 < R) inside_rows<G, ROW + 1, R, C>(weights, offsets, channels, row, x, pitch, sink);
}

// The rows of W or B, from `begin` to `end`, over a block of input channels. A last group that is not full computes rows that
// the sink must not store.
template <int R, int C, class Sink>
void dense_inside(const float* packed, const ConvBlock& block, int begin, int end, const float* x, ptrdiff_t pitch,
                  const Sink& sink) {
  constexpr int G = SPLORE_REGISTERS >= 32 ? kRowGroup : kRowGroup / 2;
  const int channels = block.channel_end - block.channel_begin;
  for (int row = begin; row < end; row += G) {
    const float* weights = packed + ptrdiff_t(row / kRowGroup * kRowGroup) * block.columns + row % kRowGroup;
    inside_rows<G, 0, R, C>(weights, block.offsets, channels, row, x, pitch, sink);
  }
}

// The rows of W or A: a last group that is not full computes rows that are not stored.
template <int T, class Source, class Sink>
SPLORE_INLINE void dense_rows(const float* packed, const int32_t* offsets, int columns, int begin, int end, const Source& x,
                              const Sink& sink) {
  for (int row = begin; row < end; row += kRowGroup) {
    for (int g = 0; g < kRowGroup; g++) sink.prefetch(row + kRowsAhead + g);
    dense_chunks<kRowGroup, 0, T>(packed + ptrdiff_t(row) * columns, offsets, columns, row, x, sink);
  }
}

// The rows of B are few: a last group that is not full is worth a kernel of its own.
template <int T, class Source>
SPLORE_INLINE void low_rank_rows(const float* packed, const int32_t* offsets, int columns, int rank, const Source& x,
                                 const Keep<T>& sink) {
  const int full = rank / kRowGroup * kRowGroup;
  dense_rows<T>(packed, offsets, columns, 0, full, x, sink);
  const float* rest = packed + ptrdiff_t(full) * columns;
  switch (rank - full) {
    case 1:
      return dense_chunks<1, 0, T>(rest, offsets, columns, full, x, sink);
    case 2:
      return dense_chunks<2, 0, T>(rest, offsets, columns, full, x, sink);
    case 3:
      return dense_chunks<3, 0, T>(rest, offsets, columns, full, x, sink);
  }
}

}  // namespace
}  // namespace splore
