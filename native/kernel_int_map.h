// Everything in eight bits that is not a convolution.
#pragma once

#include "kernel_int.h"

namespace splore {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(L * 4), aligned(4), may_alias));

template <class F>
SPLORE_INLINE void int_map_with(const IntMapArgs& args, F y) {
  for (ptrdiff_t i = 0; i < args.vectors; i++) {
    Words<1> words;
#pragma GCC unroll 4
    for (int byte = 0; byte < 4; byte++) words.add(byte, 0, clamped(y(byte, i * L), args.low, args.high));
    const Ints word = words.bytes(0, 3);
    store_ints(args.out + i * L, args.mask ? filled(word, args.mask + i * L, args.fill) : word);
  }
}

void int_map(const IntMapArgs& args) {
  const IntSource& a = args.source[0];
  const IntSource& b = args.other;
  switch (args.kind) {
    case kIntCollect:
      return int_map_with(args, [&](int byte, ptrdiff_t i) {
        const IntSource& s = args.source[byte];
        return s.words ? byte_of(load_ints(s.words + i), s.byte) * s.factor + s.offset : Vec{};
      });
    case kIntAdd:
      return int_map_with(args, [&](int byte, ptrdiff_t i) {
        return (byte_of(load_ints(a.words + i), byte) * a.factor + a.offset) + byte_of(load_ints(b.words + i), byte) * b.factor;
      });
    case kIntMul:
      return int_map_with(args, [&](int byte, ptrdiff_t i) {
        const Vec x = byte_of(load_ints(a.words + i), byte) + a.offset;
        const Vec y = byte_of(load_ints(b.words + (args.other_once ? 0 : i)), byte) + b.offset;
        return (x * y) * args.factor + args.offset;
      });
    case kIntFromFloats:
      return int_map_with(args, [&](int byte, ptrdiff_t i) {
        const IntSource& s = args.source[byte];
        return s.words ? load(s.words + i) * s.factor + s.offset : Vec{};
      });
    case kIntToFloats:
      for (ptrdiff_t i = 0; i < args.vectors; i++) {
        const Vec y = (byte_of(load_ints(a.words + i * L), a.byte) + a.offset) * a.factor;
        store(args.out + i * L, args.mask ? masked(y, args.mask + i * L) : y);
      }
      return;
    case kIntTable:
      for (ptrdiff_t i = 0; i < args.vectors; i++) {
        const Bytes x = *reinterpret_cast<const Bytes*>(a.words + i * L);
        Bytes y;
        for (int byte = 0; byte < 4 * L; byte++) y[byte] = args.table[x[byte]];
        store_ints(args.out + i * L, args.mask ? filled(Ints(y), args.mask + i * L, args.fill) : Ints(y));
      }
      return;
  }
}

void int_pool(const IntPoolArgs& args) {
  for (int o = 0; o < args.outputs; o++) {
    const float* x = args.x + o * args.step;
    if (args.max) {
      Bytes y = {};
      for (int i = 0; i < args.kernel_h; i++)
        for (int j = 0; j < args.kernel_w; j++) {
          const Bytes v = *reinterpret_cast<const Bytes*>(x + i * args.row + j * args.column);
          y = v > y ? v : y;
        }
      store_ints(args.out + o * L, Ints(y));
      continue;
    }
    Ints sum[4];
    for (int byte = 0; byte < 4; byte++) sum[byte] = broadcast(args.start);
    for (int i = 0; i < args.kernel_h; i++)
      for (int j = 0; j < args.kernel_w; j++) {
        const Ints word = load_ints(x + i * args.row + j * args.column);
        for (int byte = 0; byte < 4; byte++) sum[byte] += (word >> 8 * byte) & 255;
      }
    Words<1> words;
    for (int byte = 0; byte < 4; byte++)
      words.add(byte, 0, clamped(to_floats(sum[byte]) * args.factor + args.offset, 0.0f, 255.0f));
    store_ints(args.out + o * L, words.bytes(0, 3));
  }
}

// The products with sum that the processor could do if nothing had to be loaded.
int32_t int_multiply_adds(int64_t rounds) {
  Ints sum[kChains], x[kChains];
  for (int i = 0; i < kChains; i++) sum[i] = broadcast(i), x[i] = broadcast(int32_t(rounds) + i);
  const Weights w = weights_of(int32_t(rounds));
  for (int64_t round = 0; round < rounds; round++)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) sum[i] = held(dot(sum[i], x[i], w));
  Ints all{};
  for (int i = 0; i < kChains; i++) all += sum[i];
  return all[0];
}

}  // namespace
}  // namespace splore
