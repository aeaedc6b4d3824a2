// The convolution of one tile, in three steps for each block of input channels: gather the tile where it can't be read in
// place; t += B x; y += S x (or y += W x). The last block adds A t, the residual (the bias came first) and applies the activation
// on the way to the output. Between blocks the sums wait in the worker's scratch.
//
// T accumulators, the tile's vectors, stay in registers: a multiply-add takes several cycles and two may start in each, so eight
// or ten sums must be under way for none to wait for another, and each broadcast weight is used T times, which makes T of
// T + 2 instructions multiply-adds.
//
// A block of input channels is chosen so that its part of the tile stays in the first-level cache, where it is read once for
// each non-zero.
#pragma once

#include "kernel_dense.h"
#include "kernel_pattern.h"
#include "kernel_winograd.h"

namespace splore {
namespace {

SPLORE_INLINE Ahead next_input(const ConvArgs& args, const ConvTile& tile, int b) {
  const bool last = b == args.block_count - 1;
  const ConvBlock& next = args.blocks[last ? 0 : b + 1];
  const float* x = last ? tile.next : tile.x;
  return args.fetch_input && x ? Ahead{x, next.offsets, next.channel_end - next.channel_begin, args.taps} : Ahead{};
}

template <int R, int C, int STEP>
void conv_tile(const ConvArgs& args, const ConvPart& part, const ConvTile& tile, const Scratch& scratch) {
  constexpr int T = R * C;
  const bool dense_finish = args.a_packed != nullptr;
  const ptrdiff_t pitch = args.gather ? C * L : args.x_row;
  for (int b = 0; b < args.block_count; b++) {
    const ConvBlock& block = args.blocks[b];
    const bool first = b == 0, last = b == args.block_count - 1;
    if (args.gather) gather_tile<R, C>(*args.gather, block, tile, scratch.gathered);
    const Corner<R, C, STEP> x(args.gather ? scratch.gathered : tile.x, pitch);
    if (block.winograd) {
      if constexpr (STEP == 1) winograd_rows<R, C>(block, args.rank, tile.x, pitch, scratch.t, first);
    } else if (args.rank && args.inside) {
      if constexpr (STEP == 1 && may_be_inside(R, C))
        dense_inside<R, C>(block.b, block, 0, args.rank, tile.x, pitch, Keep<T>{scratch.t, first});
    } else if (args.rank) {
      low_rank_rows<T>(block.b, block.offsets, block.columns, args.rank, x, Keep<T>{scratch.t, first});
    }
    const Store<R, C> sink{args, tile, scratch.partial, first, last && !dense_finish};
    if (block.dense && args.inside) {
      if constexpr (STEP == 1 && may_be_inside(R, C))
        dense_inside<R, C>(block.dense, block, part.begin, part.end, tile.x, pitch, sink);
    } else if (block.dense) {
      dense_rows<T>(block.dense, block.offsets, block.columns, part.begin, part.end, x, sink);
    } else if (part.pattern) {
      if constexpr (T <= kPatternVectors)
        pattern_rows<R, C, STEP>(part.pattern[b], x, sink, last ? args.rank : 0, {scratch.t, C * L}, next_input(args, tile, b),
                                 pitch);
    } else if (part.sparse) {
      sparse_rows<R, C, STEP>(part.sparse[b], x, sink, args.a, last && !dense_finish ? args.rank : 0, scratch.t,
                              next_input(args, tile, b), pitch);
    }
  }
  if (dense_finish) {
    const Corner<R, C, 1> t(scratch.t, C * L);
    dense_rows<T>(args.a_packed, args.t_offsets, args.rank, part.begin, part.end, t,
                  Store<R, C>{args, tile, scratch.partial, part.sparse == nullptr, true});
  }
}

}  // namespace
}  // namespace splore
