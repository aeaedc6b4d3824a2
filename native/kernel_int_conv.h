// A convolution in eight bits, tile by tile, in three steps for each block of input channels: gather the tile where it can't be
// read in place; t += B x; y += S x. All weights are streams of blocks, dense ones too: a block is one broadcast, and one load
// and one product with sum for each vector of the tile. The last block rounds t, adds A t, scales, adds the residual, clamps and
// rounds.
//
// T sums stay in registers. A product with sum takes four cycles or five, and two may start in each: eight must be under way.
#pragma once

#include "kernel_int.h"

namespace splore {
namespace {

template <int R, int C, int STEP>
SPLORE_INLINE const IntBlock* add_blocks(const IntBlock* block, ptrdiff_t count, const Corner<R, C, STEP>& x,
                                         Ints (&sum)[R * C]) {
  constexpr int T = R * C, U = T >= 8 ? 1 : T >= 4 ? 2 : T >= 2 ? 4 : 8;
  const IntBlock* end = block + count;
  const auto add = [&](Ints(&to)[T], const IntBlock& b) __attribute__((always_inline)) {
    const Weights w = weights_of(b.weights);
    const ptrdiff_t offset = b.offset;
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) to[v] = dot(to[v], load_ints(x.place(v, offset)), w);
  };
  if constexpr (U > 1) {
    if (end - block >= U) {
      Ints more[U][T] = {};
      for (; end - block >= U; block += U)
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) add(more[u], block[u]);
#pragma GCC unroll 8
      for (int u = 0; u < U; u++)
#pragma GCC unroll 16
        for (int v = 0; v < T; v++) sum[v] += more[u][v];
    }
  }
  for (; block < end; block++) add(sum, *block);
  return block;
}

template <int R, int C>
struct IntStore {
  static constexpr int T = R * C;
  const IntConvArgs& args;
  const ConvTile& tile;
  const Scratch& scratch;
  bool first, last;

  // Rows of sums, those of t behind those of the outputs.
  SPLORE_INLINE float* partial(int row) const { return scratch.partial + ptrdiff_t(row) * T * L; }

  SPLORE_INLINE void start(int row, int32_t from, Ints (&sum)[T]) const {
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) sum[v] = first ? broadcast(from) : load_ints(partial(row) + v * L);
  }

  SPLORE_INLINE void keep(int row, const Ints (&sum)[T]) const {
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) store_ints(partial(row) + v * L, sum[v]);
  }

  // The sums of direction j of t, rounded.
  SPLORE_INLINE void finish_t(int j, const Ints (&sum)[T], Words<T>& words) const {
#pragma GCC unroll 16
    for (int v = 0; v < T; v++)
      words.add(j % 4, v, clamped(to_floats(sum[v]) * args.directions[j].factor + 128.0f, 1.0f, 255.0f));
    if (j % 4 < 3 && j + 1 < args.rank) return;
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) store_ints(scratch.t + (ptrdiff_t(j / 4) * T + v) * L, words.bytes(v, j % 4));
  }

  // What the last block reads and writes of a word beside its sums.
  SPLORE_INLINE void prefetch(int word) const {
    const float* out = tile.out + word * args.out_plane;
    const float* residual = tile.residual + word * args.residual_plane;
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) {
      if (tile.residual != tile.out) __builtin_prefetch(out + (v / C) * args.out_row + (v % C) * L, 1);
      if (tile.residual) __builtin_prefetch(residual + (v / C) * args.residual_row + (v % C) * L, 0);
    }
  }

  SPLORE_INLINE void finish(int channel, const Ints (&sum)[T], Words<T>& words, Words<T>& second) const {
    const IntChannel& c = args.channels[channel];
    const int byte = channel % 4;
    Vec y[T];
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) y[v] = to_floats(sum[v]) * c.factor + c.offset;
    if (args.rank) {
      Ints up[T];
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) up[v] = broadcast(c.up_start);
      const int count = (args.rank + 3) / 4;
      add_blocks<R, C, 1>(args.up + ptrdiff_t(channel) * count, count, Corner<R, C, 1>(scratch.t, C * L), up);
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) y[v] = y[v] + to_floats(up[v]) * c.up;
    }
    if (tile.residual) {
      const float* from = tile.residual + channel / 4 * args.residual_plane;
#pragma GCC unroll 16
      for (int v = 0; v < T; v++)
        y[v] = y[v] + byte_of(load_ints(from + (v / C) * args.residual_row + (v % C) * L), byte) * args.residual_factor;
    }
    if (args.floats) return put_floats(channel, y);
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) words.add(byte, v, clamped(y[v], args.low, args.high));
    if (tile.second) {
#pragma GCC unroll 16
      for (int v = 0; v < T; v++) {
        const Vec rounded = (clamped(y[v], args.low, args.high) + kRounder) - kRounder;
        second.add(byte, v, clamped(rounded * c.second_factor + c.second_offset, args.second_low, args.second_high));
      }
    }
    if (byte < 3 && channel + 1 < args.n) return;
    put(words, byte, tile.out + channel / 4 * args.out_plane, args.out_row, args.fill);
    if (tile.second) put(second, byte, tile.second + channel / 4 * args.second_plane, args.second_row, args.second_fill);
  }

 private:
  SPLORE_INLINE void put(const Words<T>& words, int last_byte, float* out, ptrdiff_t row, uint32_t fill) const {
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) {
      const Ints word = words.bytes(v, last_byte);
      store_ints(out + (v / C) * row + (v % C) * L, tile.mask ? filled(word, tile.mask + v * L, fill) : word);
    }
  }

  SPLORE_INLINE void put_floats(int channel, Vec (&y)[T]) const {
    float* out = tile.out + channel * args.out_plane;
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) {
      const Vec z = activated(y[v], args.act);
      store(out + (v / C) * args.out_row + (v % C) * L, tile.mask ? masked(z, tile.mask + v * L) : z);
    }
  }
};

// Brings words of the input of the next block, or of the next tile, into the second-level cache: the first tap and the last one
// see nearly all that the window does.
template <int R, int C, int STEP>
SPLORE_INLINE void fetch_words(const IntConvArgs& args, const float* corner, int64_t begin, int64_t end) {
  for (int64_t word = begin; word < end; word++)
    for (ptrdiff_t tap = args.first_tap;; tap = args.last_tap) {
      const Corner<R, C, STEP> x(corner + word * args.in_plane + tap, args.x_row);
#pragma GCC unroll 16
      for (int v = 0; v < R * C; v++) __builtin_prefetch(x.place(v, 0), 0, 2);
      if (tap == args.last_tap) break;
    }
}

template <int R, int C, int STEP>
void int_conv_tile(const IntConvArgs& args, const IntPart& part, const ConvTile& tile, const Scratch& scratch) {
  constexpr int T = R * C;
  const ptrdiff_t pitch = args.gather ? C * L : args.x_row;
  Ints sum[T];
  Words<T> words{}, second{};
  for (int b = 0; b < args.block_count; b++) {
    const IntStore<R, C> sink{args, tile, scratch, b == 0, b == args.block_count - 1};
    if (args.gather) gather_tile<R, C>(*args.gather, args.blocks[b], tile, scratch.gathered);
    const Corner<R, C, STEP> x(args.gather ? scratch.gathered : tile.x, pitch);
    const IntBlock* block = args.rank ? args.down[b].blocks : nullptr;
    for (int j = 0; j < args.rank; j++) {
      sink.start(args.n + j, args.directions[j].start, sum);
      block = add_blocks(block, args.down[b].counts[j], x, sum);
      if (sink.last)
        sink.finish_t(j, sum, words);
      else
        sink.keep(args.n + j, sum);
    }
    const IntStream& stream = part.stream[b];
    block = stream.blocks;
    const float* ahead = !args.fetch_input ? nullptr : sink.last ? tile.next : tile.x;
    const ConvBlock& next = args.blocks[sink.last ? 0 : b + 1];
    const int64_t words_ahead = next.channel_end - next.channel_begin, rows = part.end - part.begin;
    for (int i = part.begin; i < part.end; i++) {
      const int64_t row = i - part.begin;
      if (ahead)
        fetch_words<R, C, STEP>(args, ahead, next.channel_begin + row * words_ahead / rows,
                                next.channel_begin + (row + 1) * words_ahead / rows);
      if (args.fetch_output && sink.last && i % 4 == 0 && i + 4 < part.end) sink.prefetch(i / 4 + 1);
      sink.start(i, args.channels[i].start, sum);
      block = add_blocks(block, stream.counts[i - part.begin], x, sum);
      if (sink.last)
        sink.finish(i, sum, words, second);
      else
        sink.keep(i, sum);
    }
  }
}

}  // namespace
}  // namespace splore
