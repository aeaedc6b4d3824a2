// What the kernels in eight bits are given. A value in bytes is a value of words: four neighbouring channels of a pixel in the
// four bytes of what elsewhere is a float, so that it lies like a float32 value of a quarter of the channels, in both layouts.
#pragma once

#include "kernels.h"

namespace splore {

// A block of a weight: four signed bytes for the four channels of a word.
struct IntBlock {
  int32_t offset;  // words, from the tile's corner
  int32_t weights;
};

// The blocks of some rows within a block of input channels, one row after another.
struct IntStream {
  const IntBlock* blocks;
  const int32_t* counts;
};

// What becomes of an output channel's sums: y = factor sum + offset + up (A t) + the residual, in steps of the result's scale.
struct IntChannel {
  float factor, offset, up;
  float second_factor, second_offset;  // of the fused second output, from the result's byte
  int32_t start, up_start;             // what the sums begin with, for the zero points
};

// Output channels of one task.
struct IntPart {
  int32_t begin, end;       // multiples of four, but for the last end
  const IntStream* stream;  // [block]
};

struct IntConvArgs {
  int32_t n, rank, block_count;
  const ConvBlock* blocks;  // only their channels, in words, for the gather
  const IntStream* down;    // B, [block]
  const IntBlock* up;       // A, [n][rank in whole words], with offsets into t
  const IntChannel* channels;
  const IntChannel* directions;  // of t
  bool floats;                   // the result is float32, its planes those of single channels
  int32_t act;                   // of that; of bytes low and high are the clamp
  float low, high, second_low, second_high;
  float residual_factor;
  uint32_t fill, second_fill;  // a word of zero points
  ptrdiff_t x_row;
  ptrdiff_t out_row, out_plane, residual_row, residual_plane, second_row, second_plane;
  const Gather* gather;
  bool fetch_input, fetch_output;  // too large for the second-level cache: prefetch what comes next
  ptrdiff_t in_plane, first_tap, last_tap;  // of the input: words between planes, and from a tile's corner
};

typedef void (*IntConvKernel)(const IntConvArgs&, const IntPart&, const ConvTile&, const Scratch&);

// A byte of some words as a number: factor byte + offset.
struct IntSource {
  const float* words;  // null for zero
  int32_t byte;
  float factor, offset;
};

enum IntMapKind { kIntCollect, kIntAdd, kIntMul, kIntTable, kIntFromFloats, kIntToFloats };

// Words of the result, in vectors; of kIntToFloats a channel in float32.
struct IntMapArgs {
  int32_t kind;
  IntSource source[4];  // of each byte; kIntAdd, kIntMul, kIntTable: only the first, of all bytes. kIntFromFloats: floats
  IntSource other;  // kIntAdd, kIntMul: the other value; of a product offsets are less the zero points, factors those of bytes
  float factor, offset;  // kIntMul: of the product
  bool other_once;  // kIntMul: the other value is one vector
  const uint8_t* table;
  float low, high;
  float* out;
  const int32_t* mask;  // or null
  uint32_t fill;
  ptrdiff_t vectors;
};

// One row of outputs of a pool in the batch-interleaved layout, or, over `step` words, of neighbouring words.
struct IntPoolArgs {
  bool max;
  const float* x;
  ptrdiff_t row, column, step;  // words between the window's rows, its columns, the outputs
  int32_t kernel_h, kernel_w;
  float* out;
  int32_t outputs;  // vectors
  int32_t start;  // of a mean's sums
  float factor, offset;
};

struct IntKernels {
  const char* name;
  IntConvKernel conv[kTileCount][2];  // as in Kernels
  void (*map)(const IntMapArgs&);
  void (*pool)(const IntPoolArgs&);
  int32_t (*multiply_adds)(int64_t rounds);  // kChains vectors of blocks a round, out of registers
};

const IntKernels* int_kernels_generic();
const IntKernels* int_kernels_avx2();
const IntKernels* int_kernels_avxvnni();
const IntKernels* int_kernels_avx512();
const IntKernels* int_kernels_avx512vnni();

}  // namespace splore
