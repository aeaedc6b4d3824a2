// Kernels of the operations on tensors: normalisation, softmax, products of two values.
//
// Each lane of a vector is a pixel or an image of its own, so that sums over channels need no sums over lanes.
#pragma once

#include "kernel_vector.h"

namespace splore {
namespace {

// f(vector) over the channels, rows and columns of what is reduced, in four chains that don't wait for each other.
template <class F>
SPLORE_INLINE Vec total(const ReduceArgs& args, const float* x, F f) {
  Vec sum[4] = {};
  for (int64_t c = 0; c < args.channels; c++)
    for (int64_t y = 0; y < args.rows; y++) {
      const float* row = x + c * args.plane + y * args.row;
      Vec& mine = sum[(c + y) % 4];
      for (int64_t i = 0; i < args.columns; i++) mine += f(load(row + i * L));
    }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// One vector of pixels, or of images: over all that is reduced.
void normalize(const ReduceArgs& args, const float* x, float* out) {
  const float share = 1.0f / float(args.channels * args.rows * args.columns);
  const Vec mean = total(args, x, [](Vec v) { return v; }) * share;
  const Vec variance = total(args, x, [=](Vec v) { return (v - mean) * (v - mean); }) * share;
  const Vec factor = 1.0f / square_root(variance + args.eps);
  for (int64_t c = 0; c < args.channels; c++) {
    const Vec scale = factor * args.scale[c];
    const float shift = args.shift[c];
    for (int64_t y = 0; y < args.rows; y++)
      for (int64_t i = 0; i < args.columns; i++) {
        const ptrdiff_t at = i * L;
        const Vec v = (load(x + c * args.plane + y * args.row + at) - mean) * scale + shift;
        store(out + c * args.out_plane + y * args.out_row + at, args.mask ? masked(v, args.mask) : v);
      }
  }
}

void softmax(const ReduceArgs& args, const float* x, float* out) {
  Vec most = load(x);
  for (int64_t c = 1; c < args.channels; c++) most = larger(most, load(x + c * args.plane));
  Vec sum{};
  for (int64_t c = 0; c < args.channels; c++) {
    const Vec power = exponential(load(x + c * args.plane) - most);
    sum += power;
    store(out + c * args.out_plane, power);
  }
  const Vec factor = 1.0f / sum;
  for (int64_t c = 0; c < args.channels; c++) {
    const Vec v = load(out + c * args.out_plane) * factor;
    store(out + c * args.out_plane, args.mask ? masked(v, args.mask) : v);
  }
}

SPLORE_INLINE void store_some(float* out, Vec v, ptrdiff_t lanes) {
  if (lanes >= L) return store(out, v);
  for (ptrdiff_t l = 0; l < lanes; l++) out[l] = v[l];
}

// ROWS x COLUMNS vectors of a product. The factors are numbers that count for all lanes, or a vector of images each.
template <int ROWS, int COLUMNS, bool IMAGES>
SPLORE_INLINE void product_tile(const ProductArgs& args, const float* x, const float* b, float* out, ptrdiff_t lanes) {
  Vec sum[ROWS][COLUMNS] = {};
  for (int64_t k = 0; k < args.k; k++) {
    Vec column[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) column[j] = load(x + k * args.x_plane + j * L);
    for (int i = 0; i < ROWS; i++) {
      const float* at = b + k * args.b_k + i * args.b_n;
      const Vec factor = IMAGES ? load(at) : broadcast(*at);
      for (int j = 0; j < COLUMNS; j++) sum[i][j] += factor * column[j];
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < COLUMNS; j++) store_some(out + i * args.out_plane + j * L, sum[i][j] * args.scale, lanes - j * L);
}

constexpr int kProductRows = 4, kProductColumns = SPLORE_REGISTERS >= 32 ? 4 : 2;

template <int COLUMNS, bool IMAGES>
SPLORE_INLINE void product_columns(const ProductArgs& args, ptrdiff_t at, ptrdiff_t lanes) {
  int64_t i = 0;
  for (; i + kProductRows <= args.n; i += kProductRows)
    product_tile<kProductRows, COLUMNS, IMAGES>(args, args.x + at, args.b + i * args.b_n, args.out + i * args.out_plane + at,
                                                lanes);
  for (; i < args.n; i++)
    product_tile<1, COLUMNS, IMAGES>(args, args.x + at, args.b + i * args.b_n, args.out + i * args.out_plane + at, lanes);
}

template <bool IMAGES>
SPLORE_INLINE void product_all(const ProductArgs& args) {
  constexpr ptrdiff_t kWide = kProductColumns * L;
  ptrdiff_t at = 0;
  for (; at + kWide <= args.lanes; at += kWide) product_columns<kProductColumns, IMAGES>(args, at, kWide);
  for (; at < args.lanes; at += L) product_columns<1, IMAGES>(args, at, args.lanes - at);
}

void product(const ProductArgs& args) { args.images ? product_all<true>(args) : product_all<false>(args); }

}  // namespace
}  // namespace splore
