// Everything that is not a convolution: elementwise maps, pools, and the way into and out of the images layout.
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

void map(const MapArgs& args) {
  const float* a = args.a;
  const float* b = args.b;
  switch (args.kind) {
    case kMapCopy:
      return map_with(args, [=](ptrdiff_t i) { return load(a + i); });
    case kMapAdd:
      return map_with(args, [=](ptrdiff_t i) { return load(a + i) + load(b + i); });
    case kMapMul:
      return map_with(args, [=](ptrdiff_t i) { return load(a + i) * load(b + i); });
    case kMapMulChannel: {
      const Vec factor = load(b);
      return map_with(args, [=](ptrdiff_t i) { return load(a + i) * factor; });
    }
    case kMapAffine: {
      const float scale = args.scale, shift = args.shift;
      return map_with(args, [=](ptrdiff_t i) { return load(a + i) * scale + shift; });
    }
  }
}

void pool(const PoolArgs& args) {
  for (int o = 0; o < args.outputs; o++) {
    const float* x = args.x + o * args.step;
    Vec y = args.max ? load(x) : Vec{};
    for (int i = 0; i < args.kernel_h; i++)
      for (int j = 0; j < args.kernel_w; j++) {
        const Vec v = load(x + i * args.row + j * L);
        y = args.max ? larger(y, v) : y + v;
      }
    store(args.out + o * L, args.max ? y : y * args.scale);
  }
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
