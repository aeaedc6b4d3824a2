// The weight of a convolution in eight bits: its blocks, row by row, and packed for one choice of kernel.
#pragma once

#include "kernels_int.h"
#include "weights.h"

namespace splore {

// Rows of blocks over all input channels, in rising order of word and tap; a grouped convolution is block diagonal.
struct IntRows {
  struct Block {
    uint32_t position;  // word taps + tap
    int32_t weights;
  };
  std::vector<Block> blocks;
  std::vector<size_t> begins;  // of each row, and the end

  int64_t rows() const { return int64_t(begins.size()) - 1; }
  size_t count(int64_t row) const { return begins[size_t(row) + 1] - begins[size_t(row)]; }
  // The sum of a row's weights.
  int32_t sum(int64_t row) const;
};

// The dense and the block part of a weight together.
IntRows int_rows(const IntWeight& weight, int64_t groups);
// A dense matrix (rows, channels taps).
IntRows int_rows(const int8_t* matrix, int64_t rows, int64_t channels, int64_t taps);

struct PackedIntConv : Packing {
  std::vector<ConvBlock> blocks;  // their channels, in words
  std::vector<IntPart> parts;
  std::vector<IntStream> streams, down;  // [part][block], [block]
  AlignedVector<IntBlock> entries, up;
  AlignedVector<int32_t> counts;
  int64_t most_columns = 0;  // of a block, words

  // `offsets` of each position, where the tile is not gathered. Words of a tile: tile_floats.
  PackedIntConv(const IntRows& rows, const IntRows& down_rows, const IntWeight& weight, const std::vector<int32_t>& offsets,
                int64_t words, int64_t block_words, int parts, ptrdiff_t tile_floats);
  PackedIntConv(const PackedIntConv&) = delete;
  int64_t bytes() const override;
  bool same_as(const Packing& other) const override;

 private:
  struct Cut {  // where a stream's entries and counts begin
    size_t entry, count;
  };
  Cut pack(const IntRows& rows, int64_t begin, int64_t end, const ConvBlock& block, int64_t taps,
           const std::vector<int32_t>& offsets, ptrdiff_t tile_floats);
};

}  // namespace splore
