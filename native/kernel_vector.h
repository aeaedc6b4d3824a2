// The vector type of the instruction set this file is compiled for, and the activations on it.
//
// Everything here has internal linkage: the same names are compiled several times with different flags.
#pragma once

#include <stdint.h>

#include "kernels.h"
#include "splore.h"

namespace splore {
namespace {

constexpr int L = SPLORE_LANES;
typedef float Vec __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(L * 4), aligned(4), may_alias));

#define SPLORE_INLINE inline __attribute__((always_inline))

SPLORE_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
SPLORE_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
SPLORE_INLINE Vec broadcast(float x) { return x - Vec{}; }
SPLORE_INLINE Vec masked(Vec v, const int32_t* mask) { return Vec(Ints(v) & *reinterpret_cast<const Ints*>(mask)); }

// A value that stays in a register for all its uses: the compiler would rather read it again for each.
SPLORE_INLINE Vec held(Vec v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// from[index[l]] in each lane l, or 0 where the index is negative.
SPLORE_INLINE Vec pick(const float* from, const int32_t* index) {
#ifdef SPLORE_PICK
  return SPLORE_PICK(from, index);
#else
  Vec picked;
  for (int l = 0; l < L; l++) picked[l] = index[l] >= 0 ? from[index[l]] : 0.0f;
  return picked;
#endif
}

// The same for indices from start to start + 2 L.
SPLORE_INLINE Vec pick_near(const float* from, int32_t start, const int32_t* index) {
#ifdef SPLORE_PICK_NEAR
  return SPLORE_PICK_NEAR(from, start, index);
#else
  (void)start;
  return pick(from, index);
#endif
}

// Comparisons are written so that a NaN stays one.
SPLORE_INLINE Vec at_least(Vec x, float low) { return x < low ? broadcast(low) : x; }
SPLORE_INLINE Vec at_most(Vec x, float high) { return x > high ? broadcast(high) : x; }
SPLORE_INLINE Vec larger(Vec x, Vec y) {
  const Vec most = x < y ? y : x;  // x where either is a NaN
  return y != y ? y : most;
}
SPLORE_INLINE float larger(float x, float y) { return (y > x) | (y != y) ? y : x; }

// e^x to about 1e-7: 2^n e^r with |r| <= ln 2 / 2, and a Taylor series for e^r. Infinite above 88, so that its reciprocal is 0
// even beside the largest numbers.
SPLORE_INLINE Vec exponential(Vec x) {
  const Ints large = x > 88.0f;
  x = at_most(at_least(x, -87.0f), 88.0f);
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which lands in the low bits
  const Vec rounded = x * 1.44269504f + shifter;
  const Vec n = rounded - shifter;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints power = (Ints(rounded) - Ints(broadcast(shifter)) + 127) << 23;
  return large ? broadcast(__builtin_inff()) : p * Vec(power);
}

SPLORE_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// erf to about 1e-7, after Abramowitz and Stegun's formula 7.1.26.
SPLORE_INLINE Vec error_function(Vec x) {
  const Vec size = x < 0.0f ? -x : x;
  const Vec t = 1.0f / (size * 0.3275911f + 1.0f);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec y = 1.0f - p * t * exponential(-size * size);
  return x < 0.0f ? -y : y;
}

SPLORE_INLINE Vec square_root(Vec x) {
#ifdef SPLORE_SQRT
  return Vec(SPLORE_SQRT(x));
#else
  Vec y;
  for (int l = 0; l < L; l++) y[l] = __builtin_sqrtf(x[l]);
  return y;
#endif
}

SPLORE_INLINE Vec hyperbolic_tangent(Vec x) { return 1.0f - 2.0f / (1.0f + exponential(x * 2.0f)); }

// x tanh(log(1 + e^x)), with the tangent as a fraction of powers of e^x.
SPLORE_INLINE Vec mish(Vec x) {
  const Vec power = exponential(at_most(x, 20.0f));
  const Vec square = power * (power + 2.0f);
  return x * (square / (square + 2.0f));
}

__attribute__((noinline)) Vec activated_slowly(Vec x, int act) {
  switch (act) {
    case SPLORE_RELU6:
      return at_most(at_least(x, 0.0f), 6.0f);
    case SPLORE_SILU:
      return x * sigmoid(x);
    case SPLORE_SIGMOID:
      return sigmoid(x);
    case SPLORE_HARDSWISH:
      return x * at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6);
    case SPLORE_HARDSIGMOID:
      return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6);
    case SPLORE_GELU:
      return x * 0.5f * (1.0f + error_function(x * 0.70710678f));
    case SPLORE_GELU_TANH:
      return x * 0.5f * (1.0f + hyperbolic_tangent((x + x * x * x * 0.044715f) * 0.797884561f));
    case SPLORE_TANH:
      return hyperbolic_tangent(x);
    case SPLORE_EXP:
      return exponential(x);
    case SPLORE_SQRT:
      return square_root(x);
    case SPLORE_RECIPROCAL:
      return 1.0f / x;
    case SPLORE_ABS:
      return x < 0.0f ? -x : x;
    case SPLORE_ELU:
      return x > 0.0f ? x : exponential(x) - 1.0f;
    case SPLORE_MISH:
      return mish(x);
    default:
      return x;
  }
}

__attribute__((noinline)) void activate_slowly(Vec* x, int count, int act) {
  for (int i = 0; i < count; i++) x[i] = activated_slowly(x[i], act);
}

SPLORE_INLINE Vec activated(Vec x, int act) {
  if (act == SPLORE_NONE) return x;
  if (act == SPLORE_RELU) return at_least(x, 0.0f);
  return activated_slowly(x, act);
}

}  // namespace
}  // namespace splore
