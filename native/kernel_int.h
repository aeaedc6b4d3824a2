// Sums of products of bytes, and what becomes of them, on the vectors of one instruction set. Compile without contraction: a
// product and a sum are rounded one after the other, as in the twin.
#pragma once

#include "kernel_tile.h"
#include "kernels_int.h"

namespace splore {
namespace {

typedef uint32_t Unsigned __attribute__((vector_size(L * 4), aligned(4), may_alias));

SPLORE_INLINE Ints load_ints(const float* p) { return *reinterpret_cast<const Ints*>(p); }
SPLORE_INLINE void store_ints(float* p, Ints v) { *reinterpret_cast<Ints*>(p) = v; }
SPLORE_INLINE Ints broadcast(int32_t x) { return x - Ints{}; }
SPLORE_INLINE Ints held(Ints x) { return Ints(held(Vec(x))); }
SPLORE_INLINE Vec to_floats(Ints x) { return __builtin_convertvector(x, Vec); }

// The weights of a block in every lane, and sums of four products in each.
#if defined(SPLORE_DOT)
typedef Ints Weights;
SPLORE_INLINE Weights weights_of(int32_t block) { return broadcast(block); }
SPLORE_INLINE Ints dot(Ints sum, Ints x, const Weights& w) { return SPLORE_DOT(sum, x, w); }
#elif defined(SPLORE_MADD)
// Two products at a time in 16 bits: the even bytes, and the odd ones.
struct Weights {
  Ints even, odd;
};
SPLORE_INLINE Weights weights_of(int32_t block) {
  const auto pair = [&](int first) {
    const uint32_t low = uint16_t(int16_t(int8_t(block >> first))), high = uint16_t(int16_t(int8_t(block >> (first + 16))));
    return broadcast(int32_t(low | high << 16));
  };
  return {pair(0), pair(8)};
}
SPLORE_INLINE Ints dot(Ints sum, Ints x, const Weights& w) {
  return sum + SPLORE_MADD(x & 0x00ff00ff, w.even) + SPLORE_MADD((x >> 8) & 0x00ff00ff, w.odd);
}
#else
struct Weights {
  int32_t byte[4];
};
SPLORE_INLINE Weights weights_of(int32_t block) {
  return {{int8_t(block), int8_t(block >> 8), int8_t(block >> 16), int8_t(block >> 24)}};
}
SPLORE_INLINE Ints dot(Ints sum, Ints x, const Weights& w) {
  for (int i = 0; i < 4; i++) sum += ((x >> 8 * i) & 255) * w.byte[i];
  return sum;
}
#endif

SPLORE_INLINE Vec byte_of(Ints word, int byte) { return to_floats((word >> 8 * byte) & 255); }

SPLORE_INLINE Vec clamped(Vec y, float low, float high) { return at_most(at_least(y, low), high); }

// From 2^23 to 2^24 floats are whole numbers: the sum rounds, half to even, and has the byte in its lowest bits.
constexpr float kRounder = 12582912.0f;  // 1.5 2^23
constexpr uint32_t kRounderBits = 0x4b400000;

// Puts numbers from 0 to 255 together to words, byte after byte. The bits of kRounder go round beyond 32, hence unsigned.
template <int T>
struct Words {
  Unsigned word[T];

  SPLORE_INLINE void add(int byte, int v, Vec y) {
    const Unsigned bits = Unsigned(y + kRounder);
    word[v] = byte ? word[v] + (bits << 8 * byte) : bits;
  }
  // The word v after the bytes 0 to `last`, without what the bits of kRounder have added up to.
  SPLORE_INLINE Ints bytes(int v, int last) const {
    return Ints(word[v] - (last ? kRounderBits + (kRounderBits << 8) : kRounderBits));
  }
};

SPLORE_INLINE Ints filled(Ints word, const int32_t* mask, uint32_t fill) {
  const Ints inside = *reinterpret_cast<const Ints*>(mask);
  return (word & inside) | (~inside & int32_t(fill));
}

}  // namespace
}  // namespace splore
