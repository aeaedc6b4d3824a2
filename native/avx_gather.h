// How the instruction set of this file gathers. Include it before kernel_table.h or kernel_int_table.h.
#pragma once

#include <immintrin.h>

#if SPLORE_LANES == 16
#define SPLORE_INSIDE(index) _mm512_movepi32_mask(~_mm512_loadu_si512(index))
#define SPLORE_PICK(from, index) \
  _mm512_mask_i32gather_ps(_mm512_setzero_ps(), SPLORE_INSIDE(index), _mm512_loadu_si512(index), from, 4)
#define SPLORE_PICK_NEAR(from, start, index)                                                          \
  _mm512_maskz_permutex2var_ps(SPLORE_INSIDE(index), _mm512_loadu_ps((from) + (start)),               \
                               _mm512_sub_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(start)), \
                               _mm512_loadu_ps((from) + (start) + 16))
#else
#define SPLORE_INDEX(index) _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index))
#define SPLORE_PICK(from, index) \
  _mm256_mask_i32gather_ps(_mm256_setzero_ps(), from, SPLORE_INDEX(index), _mm256_castsi256_ps(~SPLORE_INDEX(index)), 4)
#endif
