// t = B x for a 3 x 3 window of stride 1 in the batch-interleaved layout, after Winograd: two outputs in each direction from four
// inputs, by 16 multiplications instead of 36 (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016). B has
// few rows, so that all of them share the transformed input out of registers, one row of frequencies after the other.
#pragma once

#include "kernel_tile.h"

namespace splore {
namespace {

// Frequencies along a row, of one output or of two.
constexpr int frequencies(int outputs) { return outputs == 1 ? 3 : 4; }

// The frequencies of row F: two rows of the input, added or subtracted; then the same along the row.
template <int F, int W, int G, int N>
SPLORE_INLINE void winograd_sums(const float* weights, const int32_t* offsets, int channels, const float* x, ptrdiff_t pitch,
                                 Vec (&sum)[G][N]) {
  constexpr int plus = F == 0 ? 0 : F == 2 ? 2 : 1, other = F == 2 ? 1 : F == 3 ? 3 : 2;
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 4
    for (int f = 0; f < N; f++) sum[g][f] = Vec{};
  for (int c = 0; c < channels; c++, weights += 4 * G) {
    const float* from = x + offsets[ptrdiff_t(c) * 9];
    Vec row[4];
#pragma GCC unroll 4
    for (int j = 0; j < W + 2; j++) {
      const Vec a = load(from + plus * pitch + j * L), b = load(from + other * pitch + j * L);
      row[j] = F == 1 ? a + b : a - b;
    }
    Vec value[4] = {row[0] - row[2], row[1] + row[2], row[2] - row[1]};
    if constexpr (W == 2) value[3] = row[1] - row[3];
#pragma GCC unroll 4
    for (int f = 0; f < N; f++) {
      const Vec shared = held(value[f]);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) sum[g][f] += shared * broadcast(weights[f * G + g]);
    }
  }
}

// Back to outputs: along the row, and into the rows that this row of frequencies is part of.
template <int F, int H, int W, int G>
SPLORE_INLINE void winograd_row(const float* weights, const int32_t* offsets, int channels, const float* x, ptrdiff_t pitch,
                                Vec (&t)[G][H][W]) {
  Vec sum[G][frequencies(W)];
  winograd_sums<F, W>(weights + ptrdiff_t(F) * channels * 4 * G, offsets, channels, x, pitch, sum);
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) {
    Vec out[2] = {sum[g][0] + sum[g][1] + sum[g][2], Vec{}};
    if constexpr (W == 2) out[1] = sum[g][1] - sum[g][2] - sum[g][3];
#pragma GCC unroll 2
    for (int w = 0; w < W; w++) {
      if (F < 3) t[g][0][w] += out[w];
      if constexpr (H == 2) {
        if (F == 1) t[g][1][w] += out[w];
        if (F > 1) t[g][1][w] -= out[w];
      }
    }
  }
}

// H x W outputs, two or one in each direction, of G rows of B; `t` lies at the first of them.
template <int H, int W, int G>
void winograd_piece(const float* weights, const int32_t* offsets, int channels, const float* x, ptrdiff_t pitch, float* t,
                    ptrdiff_t t_row, ptrdiff_t t_plane, bool first) {
  Vec sum[G][H][W];
  for (int g = 0; g < G; g++)
    for (int h = 0; h < H; h++)
      for (int w = 0; w < W; w++) sum[g][h][w] = first ? Vec{} : load(t + g * t_plane + h * t_row + w * L);
  winograd_row<0>(weights, offsets, channels, x, pitch, sum);
  winograd_row<1>(weights, offsets, channels, x, pitch, sum);
  winograd_row<2>(weights, offsets, channels, x, pitch, sum);
  if constexpr (H == 2) winograd_row<3>(weights, offsets, channels, x, pitch, sum);
  for (int g = 0; g < G; g++)
    for (int h = 0; h < H; h++)
      for (int w = 0; w < W; w++) store(t + g * t_plane + h * t_row + w * L, sum[g][h][w]);
}

// More rows share more of the transformed input, and want more registers.
constexpr int kWinogradRows = SPLORE_REGISTERS >= 32 ? 4 : 2;

template <int G, int R, int C>
void winograd_tile(const float* weights, const ConvBlock& block, const float* x, ptrdiff_t pitch, float* t, bool first) {
  const int channels = block.channel_end - block.channel_begin;
  for (int r = 0; r < R; r += 2)
    for (int c = 0; c < C; c += 2) {
      const float* from = x + r * pitch + c * L;
      float* to = t + (ptrdiff_t(r) * C + c) * L;
      const auto piece = r + 1 < R   ? c + 1 < C ? winograd_piece<2, 2, G> : winograd_piece<2, 1, G>
                         : c + 1 < C ? winograd_piece<1, 2, G>
                                     : winograd_piece<1, 1, G>;
      piece(weights, block.offsets, channels, from, pitch, to, C * L, ptrdiff_t(R) * C * L, first);
    }
}

// Some rows of B after the others: the last ones may be fewer.
template <int R, int C>
void winograd_rows(const ConvBlock& block, int rank, const float* x, ptrdiff_t pitch, float* t, bool first) {
  const ptrdiff_t channels = block.channel_end - block.channel_begin, t_plane = ptrdiff_t(R) * C * L;
  for (int row = 0; row < rank;) {
    const float* weights = block.winograd + row * channels * 16;
    float* to = t + row * t_plane;
    if (rank - row >= kWinogradRows) {
      winograd_tile<kWinogradRows, R, C>(weights, block, x, pitch, to, first);
      row += kWinogradRows;
    } else if (kWinogradRows > 3 && rank - row == 3) {
      winograd_tile<3, R, C>(weights, block, x, pitch, to, first);
      row += 3;
    } else if (kWinogradRows > 2 && rank - row == 2) {
      winograd_tile<2, R, C>(weights, block, x, pitch, to, first);
      row += 2;
    } else {
      winograd_tile<1, R, C>(weights, block, x, pitch, to, first);
      row += 1;
    }
  }
}

}  // namespace
}  // namespace splore
