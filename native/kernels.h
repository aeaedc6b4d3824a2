// What the kernels are given, and the table through which the rest of the engine calls them. Plain data: the kernels are
// compiled once for each instruction set, and share nothing else with the engine, so that no function of one set can end
// up in another.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace splore {

constexpr int kRowGroup = 4;  // output channels that the dense kernel computes at once

struct Entry {
  float value;
  int32_t offset;  // floats, from the tile's corner
};

struct SparseRow {
  int32_t channel;
  int32_t entries;
};

// The entries of some output channels within one block of input channels; rows in falling number of entries, so that
// neighbours leave their loops together.
struct SparseBlock {
  const SparseRow* rows;
  const Entry* entries;
  // kInsideTaps for each row, whose entries are sorted by tap, if the tile is the whole map; else null.
  const int32_t* tap_counts;
  int32_t row_count;
};

// A tile that is the whole map under a 3 x 3 window knows which outputs see nothing but the border through a tap.
constexpr int kInsideTaps = 9;
constexpr bool may_be_inside(int rows, int columns) { return rows == columns && rows <= 4; }

// What the pattern kernel reads of a block, group after group of output channels: the first channel, the number of columns of
// each pattern, and the columns, each an offset and the values of its rows. In the last block A's columns follow, with
// offsets into t.
union PatternItem {
  int32_t index;
  float value;
};

struct PatternBlock {
  const PatternItem* words;
  int32_t group_count;
};

// Output channels of one task, and their weights in every block of input channels.
struct ConvPart {
  int32_t begin, end;           // multiples of kRowGroup, but for the last end
  const SparseBlock* sparse;    // one for each block of input channels, null without
  const PatternBlock* pattern;  // the same
};

struct ConvBlock {
  int32_t channel_begin, channel_end;
  int32_t columns;
  const int32_t* offsets;  // of each column, floats from the tile's corner (or into the gathered tile)
  const float* b;          // B, packed: [rank / kRowGroup][columns][kRowGroup]
  const float* winograd;   // B of 3 x 3 windows, transformed: [rank / winograd_rows][4][channels][4][its rows], null without
  const float* dense;      // all of W, packed: [n / kRowGroup][columns][kRowGroup], null without
};

// How a vector is gathered from a plane: its lanes follow one another in memory from `start` on, or all lie within two vectors
// from there on, as behind a stride of 2, or are anywhere.
enum Spread : int32_t { kRun, kNear, kScattered };
struct GatherVector {
  Spread spread;
  int32_t start;
};

// Reads a tile into columns first, where it can't be read in place: [column][vector of the tile].
struct Gather {
  const int32_t* index;  // pixels: [tap][vector][lane], floats from a channel's plane, -1 for zero
  const GatherVector* vector;  // pixels: [tap][vector]
  ptrdiff_t vectors;     // pixels: of a whole plane
  ptrdiff_t plane;       // floats between input channels
  const int32_t* taps;   // images: floats from the tile's corner
  int32_t tap_count;
  ptrdiff_t row, column;  // images: floats between the tile's rows and columns
  int32_t fill;           // pixels: the bits of what lies beyond the map
};

struct ConvArgs {
  int32_t n, act, rank, block_count;
  const ConvBlock* blocks;
  const float* bias;
  const float* a;         // A (n, rank)
  const float* a_packed;  // A as the dense kernel wants it, where it finishes the tile; else null
  const int32_t* t_offsets;
  int32_t taps;     // columns of an input channel
  bool inside;      // the tile is the whole map, and nothing beyond it is read
  bool fetch_input, fetch_output, fetch_entries;  // too large for the second-level cache: prefetch what comes next
  ptrdiff_t x_row;  // floats between two rows of the tile
  ptrdiff_t out_row, out_plane, residual_row, residual_plane;
  const Gather* gather;  // null to read in place
  // A second output, relu(scale y + shift), which spares the next convolution a pass over its input.
  const float* second_scale;
  const float* second_shift;
  ptrdiff_t second_row, second_plane;
};

struct ConvTile {
  const float* x;         // the tile's corner (in place, images), or the input's first plane (gathered pixels)
  const float* next;      // the corner of the tile that the worker is likely to compute next, or null
  ptrdiff_t vector;       // gathered pixels: the tile's first vector
  float* out;             // of channel 0
  float* second;          // null without
  const float* residual;  // null without
  const int32_t* mask;    // pixels: all ones in the lanes that are pixels; null in the batch-interleaved layout
};

// Memory of one worker.
struct Scratch {
  float* gathered;  // [columns][tile]
  float* partial;   // [n, in whole row groups][tile]: sums between two blocks of input channels
  float* t;         // [rank, in whole row groups][tile]: B x
  float* outputs;   // [n][tile], where they are pooled before they are stored
};

typedef void (*ConvKernel)(const ConvArgs&, const ConvPart&, const ConvTile&, const Scratch&);

struct TileShape {
  int8_t rows, columns;
};

// The tiles that the kernels are compiled for: output pixels in the batch-interleaved layout, vectors of pixels in the other. The
// first ones serve both, the next ones a row of vectors only, and the last ones rows of pixels.
// clang-format off
#define SPLORE_TILES(X) \
  X(1, 1) X(1, 2) X(1, 4) X(1, 7) X(1, 8) X(1, 14) \
  X(1, 3) X(1, 5) X(1, 6) X(1, 12) \
  X(2, 2) X(2, 4) X(2, 7) X(2, 8) X(4, 4)
// clang-format on

constexpr TileShape kTiles[] = {
#define SPLORE_TILE_SHAPE(R, C) {R, C},
    SPLORE_TILES(SPLORE_TILE_SHAPE)
#undef SPLORE_TILE_SHAPE
};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);

constexpr bool vectors_only(int rows, int columns) {
  return rows == 1 && (columns == 3 || columns == 5 || columns == 6 || columns == 12);
}

enum MapKind { kMapCopy, kMapAffine, kMapLeaky, kMapClamp, kMapAdd, kMapSub, kMapMul, kMapDiv, kMapMax, kMapMin };

// act(a), act(a * scale + shift), a or a * scale below 0, a from scale to shift, act(f(a, b)) over `vectors` neighbouring
// vectors.
struct MapArgs {
  int32_t kind, act;
  const float* a;
  const float* b;
  ptrdiff_t b_step;  // floats between vectors of b; 0 for one that counts for all
  float scale, shift;
  float* out;
  const int32_t* mask;  // or null
  ptrdiff_t vectors;
};

// One row of outputs of a pool in the batch-interleaved layout.
struct PoolArgs {
  int32_t max;
  const float* x;  // the first window's first pixel
  ptrdiff_t row, step;
  int32_t kernel_h, kernel_w;
  int32_t rows_ahead;  // below the window, to be prefetched for the next row of outputs
  float* out;
  int32_t outputs;
  float scale;
};

// The maxima of 2 x 2 windows: of a tile, of all channels, in the batch-interleaved layout; of a channel in the planar one.
struct HalveArgs {
  int64_t channels, rows, columns;  // of the results
  const float* x;
  ptrdiff_t plane, row;
  float* out;
  ptrdiff_t out_plane, out_row;
};

// One row of outputs of a pool in the planar layout: the window's rows are joined into a line first.
struct PoolRowArgs {
  int32_t max;
  const float* x;
  ptrdiff_t row, rows, width;
  float* line;       // `before` elements that change nothing, `width` to be filled, and as many as the last window wants
  ptrdiff_t before;
  ptrdiff_t kernel, stride, outputs;
  float* out;
  const float* scale;  // of each output, for the mean
  float row_scale;
};

// What a normalisation or a softmax takes together.
struct ReduceArgs {
  int64_t channels, rows, columns;  // columns are vectors
  ptrdiff_t plane, row, out_plane, out_row;
  const float* scale;
  const float* shift;
  float eps;
  const int32_t* mask;  // of the one vector, or null
};

// out[i][p] = scale sum over k of b[i][k] x[k][p].
struct ProductArgs {
  bool images;  // b holds a vector of images for each number
  int64_t n, k;
  const float* x;
  ptrdiff_t x_plane;
  const float* b;
  ptrdiff_t b_n, b_k;
  float* out;
  ptrdiff_t out_plane;
  ptrdiff_t lanes;  // neighbouring floats of a row of the output
  float scale;
};

constexpr int kChains = 10;  // sums that don't wait for each other: more than multiply-adds are under way at once

struct IntKernels;

struct Kernels {
  const char* name;
  const IntKernels* int8;  // those in eight bits
  int lanes;
  float (*multiply_adds)(int64_t rounds);  // kChains vectors of them a round, out of registers
  int winograd_rows;  // rows of B that share a transformed input
  int pattern_rows, pattern_vectors;  // output channels that the pattern kernel computes at once, and its largest tile
  ConvKernel conv[kTileCount][2];  // [tile][stride - 1]; a tile of vectors only has no stride
  void (*map)(const MapArgs&);
  void (*pool)(const PoolArgs&);
  void (*halve)(const HalveArgs&);
  void (*halve_planar)(const HalveArgs&);
  void (*pool_row)(const PoolRowArgs&);
  void (*normalize)(const ReduceArgs&, const float* x, float* out);
  void (*softmax)(const ReduceArgs&, const float* x, float* out);
  void (*product)(const ProductArgs&);
  // [images][pixels] with a pitch between images <-> [pixels][lanes]; lanes beyond `images` become 0.
  void (*interleave)(const float* x, ptrdiff_t pitch, int images, float* out, ptrdiff_t pixels);
  void (*deinterleave)(const float* x, float* out, ptrdiff_t pitch, int images, ptrdiff_t pixels);
};

// The kernels of an instruction set, null where the library was built without it.
const Kernels* kernels_generic();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();

}  // namespace splore
