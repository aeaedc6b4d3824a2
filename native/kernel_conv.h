// The convolution of one tile: R x C vectors of outputs of some output channels, in three steps for each block of input
// channels: gather the tile where it can't be read in place; t += B x; y += S x (or y += W x). The last block adds A t, the
// residual (the bias came first) and applies the activation on the way to the output. Between blocks the sums wait in the
// worker's scratch.
//
// A block of input channels is chosen so that its part of the tile stays in the first-level cache, where it is read once for
// each non-zero.
#pragma once

#include "kernel_vector.h"

namespace splore {
namespace {

// Where the vectors of a tile lie: `row` floats between rows, STEP vectors between columns.
template <int R, int C, int STEP>
struct Corner {
  const float* row[R];
  Corner(const float* x, ptrdiff_t pitch) {
    for (int r = 0; r < R; r++) row[r] = x + r * pitch;
  }
  SPLORE_INLINE Vec at(int v, ptrdiff_t offset) const { return load(row[v / C] + offset + (v % C) * STEP * L); }
};

// What happens to the sums of an output channel after a block.
template <int R, int C>
struct Store {
  static constexpr int T = R * C;
  const ConvArgs& args;
  const ConvTile& tile;
  float* partial;
  bool first, last;

  SPLORE_INLINE Vec start(int channel, int v) const {
    if (channel >= args.n) return Vec{};
    return first ? broadcast(args.bias[channel]) : load(partial + (ptrdiff_t(channel) * T + v) * L);
  }
  SPLORE_INLINE void finish(int channel, int v, Vec sum) const {
    if (channel >= args.n) return;
    if (!last) return store(partial + (ptrdiff_t(channel) * T + v) * L, sum);
    if (tile.residual)
      sum += load(tile.residual + channel * args.residual_plane + (v / C) * args.residual_row + (v % C) * L);
    sum = activated(sum, args.act);
    if (tile.mask) sum = masked(sum, tile.mask + v * L);
    store(tile.out + channel * args.out_plane + (v / C) * args.out_row + (v % C) * L, sum);
    if (tile.second) {
      sum = at_least(sum * args.second_scale[channel] + args.second_shift[channel], 0.0f);
      if (tile.mask) sum = masked(sum, tile.mask + v * L);
      store(tile.second + channel * args.second_plane + (v / C) * args.second_row + (v % C) * L, sum);
    }
  }
};

// t's rows, kept in the scratch between blocks.
template <int T>
struct Keep {
  float* t;
  bool first;
  SPLORE_INLINE Vec start(int row, int v) const { return first ? Vec{} : load(t + (ptrdiff_t(row) * T + v) * L); }
  SPLORE_INLINE void finish(int row, int v, Vec sum) const { store(t + (ptrdiff_t(row) * T + v) * L, sum); }
};

// G rows of a dense matrix, packed by kRowGroup, times N of the tile's vectors, from V on.
template <int G, int V, int N, class Source, class Sink>
SPLORE_INLINE void dense_chunk(const float* weights, const int32_t* offsets, int columns, int row, const Source& x,
                               const Sink& sink) {
  constexpr int U = G * N >= 6 ? 1 : G * N >= 3 ? 2 : 4;  // few sums would wait for each other: take U columns at once
  Vec sum[U][G][N];
#pragma GCC unroll 4
  for (int u = 0; u < U; u++)
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) sum[u][g][v] = u == 0 ? sink.start(row + g, V + v) : Vec{};
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
  for (int g = 0; g < G; g++)
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
#pragma GCC unroll 4
      for (int u = 1; u < U; u++) sum[0][g][v] += sum[u][g][v];
      sink.finish(row + g, V + v, sum[0][g][v]);
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

// The rows of W or A: a last group that is not full computes rows that are not stored.
template <int T, class Source, class Sink>
SPLORE_INLINE void dense_rows(const float* packed, const int32_t* offsets, int columns, int begin, int end, const Source& x,
                              const Sink& sink) {
  for (int row = begin; row < end; row += kRowGroup)
    dense_chunks<kRowGroup, 0, T>(packed + ptrdiff_t(row) * columns, offsets, columns, row, x, sink);
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

// Row after row of S: a broadcast, an offset and T multiply-adds for each non-zero. Few vectors would wait for each other,
// so there U entries go to sums of their own.
template <int R, int C, int STEP>
SPLORE_INLINE void sparse_rows(const SparseBlock& block, const Corner<R, C, STEP>& x, const Store<R, C>& sink, const float* a,
                               int rank, const float* t) {
  constexpr int T = R * C;
  constexpr int U = T >= 6 ? 1 : T >= 3 ? 2 : T == 2 ? 4 : 8;
  const Entry* entry = block.entries;
  for (int i = 0; i < block.row_count; i++) {
    const int channel = block.rows[i].channel;
    Vec sum[U][T];
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) sum[0][v] = sink.start(channel, v);
#pragma GCC unroll 8
    for (int u = 1; u < U; u++)
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[u][v] = Vec{};
    const Entry* end = entry + block.rows[i].entries;
    if constexpr (U > 1)
      for (; end - entry >= U; entry += U)
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) {
          const Vec w = broadcast(entry[u].value);
          const ptrdiff_t offset = entry[u].offset;
#pragma GCC unroll 16
          for (int v = 0; v < T; v++) sum[u][v] += x.at(v, offset) * w;
        }
    for (; entry < end; entry++) {
      const Vec w = broadcast(entry->value);
      const ptrdiff_t offset = entry->offset;
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[0][v] += x.at(v, offset) * w;
    }
    for (int j = 0; j < rank; j++) {
      const Vec w = broadcast(a[ptrdiff_t(channel) * rank + j]);
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[0][v] += load(t + (ptrdiff_t(j) * T + v) * L) * w;
    }
#pragma GCC unroll 8
    for (int u = 1; u < U; u++)
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) sum[0][v] += sum[u][v];
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) sink.finish(channel, v, sum[0][v]);
  }
}

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
        const int32_t start = g.starts[at + v];
        if (start != kNoRun) {
          const Ints inside = *reinterpret_cast<const Ints*>(index) >= 0;
          store(out + v * L, Vec(Ints(load(plane + start)) & inside));
        } else {
          for (int l = 0; l < L; l++) out[v * L + l] = index[l] >= 0 ? plane[index[l]] : 0.0f;
        }
      }
    }
  }
}

template <int R, int C, int STEP>
void conv_tile(const ConvArgs& args, const ConvPart& part, const ConvTile& tile, const Scratch& scratch) {
  constexpr int T = R * C;
  const bool dense_finish = args.a_packed != nullptr;
  for (int b = 0; b < args.block_count; b++) {
    const ConvBlock& block = args.blocks[b];
    const bool first = b == 0, last = b == args.block_count - 1;
    if (args.gather) gather_tile<R, C>(*args.gather, block, tile, scratch.gathered);
    const Corner<R, C, STEP> x(args.gather ? scratch.gathered : tile.x, args.gather ? C * L : args.x_row);
    if (args.rank)
      low_rank_rows<T>(block.b, block.offsets, block.columns, args.rank, x, Keep<T>{scratch.t, first});
    const Store<R, C> sink{args, tile, scratch.partial, first, last && !dense_finish};
    if (block.dense)
      dense_rows<T>(block.dense, block.offsets, block.columns, part.begin, part.end, x, sink);
    else if (part.sparse)
      sparse_rows<R, C, STEP>(part.sparse[b], x, sink, args.a, last && !dense_finish ? args.rank : 0, scratch.t);
  }
  if (dense_finish) {
    const Corner<R, C, 1> t(scratch.t, C * L);
    dense_rows<T>(args.a_packed, args.t_offsets, args.rank, part.begin, part.end, t,
                  Store<R, C>{args, tile, scratch.partial, part.sparse == nullptr, true});
  }
}

}  // namespace
}  // namespace splore
