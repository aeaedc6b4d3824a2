// Everything that is not a convolution: elementwise maps, pools, and the way into and out of the batch-interleaved layout.
#pragma once

#include "kernel_vector.h"

namespace splore {
namespace {

template <class F>
SPLORE_INLINE void map_with(const MapArgs& args, F f) {
  for (ptrdiff_t i = 0; i < args.vectors; i++) {
    Vec y = activated(f(i * L), args.act);
    if (args.mask) y = masked(y, args.mask + i * L);
    store(args.out + i * L, y);
  }
}

template <class F>
SPLORE_INLINE void map_two(const MapArgs& args, F f) {
  const float* a = args.a;
  const float* b = args.b;
  if (args.b_step) return map_with(args, [=](ptrdiff_t i) { return f(load(a + i), load(b + i)); });
  const Vec second = load(b);
  map_with(args, [=](ptrdiff_t i) { return f(load(a + i), second); });
}

SPLORE_INLINE Vec leaky(Vec x, float slope) { return x < 0.0f ? x * slope : x; }

void map(const MapArgs& args) {
  const float* a = args.a;
  const float scale = args.scale, shift = args.shift;
  switch (args.kind) {
    case kMapCopy:
      return map_with(args, [=](ptrdiff_t i) { return load(a + i); });
    case kMapAffine:
      return map_with(args, [=](ptrdiff_t i) { return load(a + i) * scale + shift; });
    case kMapLeaky:
      return map_with(args, [=](ptrdiff_t i) { return leaky(load(a + i), scale); });
    case kMapClamp:
      return map_with(args, [=](ptrdiff_t i) { return at_most(at_least(load(a + i), scale), shift); });
    case kMapAdd:
      return map_two(args, [](Vec x, Vec y) { return x + y; });
    case kMapSub:
      return map_two(args, [](Vec x, Vec y) { return x - y; });
    case kMapMul:
      return map_two(args, [](Vec x, Vec y) { return x * y; });
    case kMapDiv:
      return map_two(args, [](Vec x, Vec y) { return x / y; });
    case kMapMax:
      return map_two(args, [](Vec x, Vec y) { return larger(x, y); });
    case kMapMin:
      return map_two(args, [](Vec x, Vec y) { return -larger(-x, -y); });
  }
}

void pool(const PoolArgs& args) {
  for (int o = 0; o < args.outputs; o++) {
    const float* x = args.x + o * args.step;
    Vec y = args.max ? load(x) : Vec{};
    for (int i = 0; i < args.rows_ahead; i++)
      for (ptrdiff_t j = 0; j < args.step; j += L) __builtin_prefetch(x + (args.kernel_h + i) * args.row + j);
    for (int i = 0; i < args.kernel_h; i++)
      for (int j = 0; j < args.kernel_w; j++) {
        const Vec v = load(x + i * args.row + j * L);
        y = args.max ? larger(y, v) : y + v;
      }
    store(args.out + o * L, args.max ? y : y * args.scale);
  }
}

// V holds a pixel: one of each image, or one number in the planar layout.
template <class V>
SPLORE_INLINE void halve_with(const HalveArgs& args) {
  constexpr ptrdiff_t lanes = sizeof(V) / sizeof(float);
  for (int64_t c = 0; c < args.channels; c++)
    for (int64_t r = 0; r < args.rows; r++) {
      const V* x = reinterpret_cast<const V*>(args.x + c * args.plane + 2 * r * args.row);
      const V* below = x + args.row / lanes;
      V* out = reinterpret_cast<V*>(args.out + c * args.out_plane + r * args.out_row);
      for (int64_t o = 0; o < args.columns; o++)
        out[o] = larger(larger(x[2 * o], x[2 * o + 1]), larger(below[2 * o], below[2 * o + 1]));
    }
}

void halve(const HalveArgs& args) { halve_with<Vec>(args); }

void halve_planar(const HalveArgs& args) { halve_with<float>(args); }

// The maximum or the sum of windows of `kernel` neighbours, STRIDE apart; 0 takes the stride at run time.
template <bool MAX, int STRIDE>
SPLORE_INLINE void slide(const PoolRowArgs& args) {
  const ptrdiff_t stride = STRIDE ? STRIDE : args.stride;
  const float* line = args.line;
  float* out = args.out;
  for (ptrdiff_t o = 0; o < args.outputs; o++) out[o] = line[o * stride];
  for (ptrdiff_t j = 1; j < args.kernel; j++)
    for (ptrdiff_t o = 0; o < args.outputs; o++) {
      const float v = line[o * stride + j];
      out[o] = MAX ? larger(out[o], v) : out[o] + v;
    }
}

void pool_row(const PoolRowArgs& args) {
  float* line = args.line + args.before;
  for (ptrdiff_t i = 0; i < args.rows; i++) {
    const float* x = args.x + i * args.row;
    for (ptrdiff_t j = 0; j < args.width; j++) {
      const float old = line[j];
      line[j] = i == 0 ? x[j] : args.max ? larger(old, x[j]) : old + x[j];
    }
  }
  if (args.max) {
    args.stride == 2 ? slide<true, 2>(args) : args.stride == 1 ? slide<true, 1>(args) : slide<true, 0>(args);
    return;
  }
  args.stride == 2 ? slide<false, 2>(args) : args.stride == 1 ? slide<false, 1>(args) : slide<false, 0>(args);
  for (ptrdiff_t o = 0; o < args.outputs; o++) args.out[o] *= args.scale[o] * args.row_scale;
}

// The multiply-adds that the processor could do if nothing had to be loaded.
float multiply_adds(int64_t rounds) {
  Vec sum[kChains];
  for (int i = 0; i < kChains; i++) sum[i] = broadcast(float(i));
  const Vec factor = broadcast(float(rounds) * 1e-12f);
  for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) sum[i] = sum[i] * factor + factor;
  Vec all{};
  for (int i = 0; i < kChains; i++) all += sum[i];
  return all[0];
}

void interleave(const float* x, ptrdiff_t pitch, int images, float* out, ptrdiff_t pixels) {
  for (ptrdiff_t begin = 0; begin < pixels; begin += 16) {
    const ptrdiff_t end = begin + 16 < pixels ? begin + 16 : pixels;
    for (int l = 0; l < L; l++)
      for (ptrdiff_t p = begin; p < end; p++) out[p * L + l] = l < images ? x[l * pitch + p] : 0.0f;
  }
}

void deinterleave(const float* x, float* out, ptrdiff_t pitch, int images, ptrdiff_t pixels) {
  for (ptrdiff_t begin = 0; begin < pixels; begin += 16) {
    const ptrdiff_t end = begin + 16 < pixels ? begin + 16 : pixels;
    for (int l = 0; l < images; l++)
      for (ptrdiff_t p = begin; p < end; p++) out[l * pitch + p] = x[p * L + l];
  }
}

}  // namespace
}  // namespace splore
