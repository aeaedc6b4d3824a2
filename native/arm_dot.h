// Sums of products of bytes on AArch64, where the compiler may use them. Include it before kernel_int_table.h.
#pragma once

#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define SPLORE_DOT(sum, x, w) Ints(vusdotq_s32(int32x4_t(sum), uint8x16_t(x), int8x16_t(w)))
#else
// Both bytes signed: x is 128 more than what its bits without the highest one turned over are, so 128 w is added, by 64 twice.
// That hangs on the weights alone: it is reckoned once for all vectors of a tile.
#define SPLORE_128(w) vdotq_s32(vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(64), w), vdupq_n_s8(64), w)
#define SPLORE_DOT(sum, x, w) \
  Ints(vdotq_s32(int32x4_t(sum) + SPLORE_128(int8x16_t(w)), veorq_s8(int8x16_t(x), vdupq_n_s8(-128)), int8x16_t(w)))
#endif
#endif
