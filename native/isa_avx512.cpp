// -mavx512f -mavx512bw -mavx512vl -mavx512dq
#include <immintrin.h>
#define SPLORE_LANES 16
#define SPLORE_REGISTERS 32
#define SPLORE_ISA_NAME "avx512"
#define SPLORE_TABLE kernels_avx512
#define SPLORE_INSIDE(index) _mm512_movepi32_mask(~_mm512_loadu_si512(index))
#define SPLORE_PICK(from, index) \
  _mm512_mask_i32gather_ps(_mm512_setzero_ps(), SPLORE_INSIDE(index), _mm512_loadu_si512(index), from, 4)
#define SPLORE_PICK_NEAR(from, start, index)                                                          \
  _mm512_maskz_permutex2var_ps(SPLORE_INSIDE(index), _mm512_loadu_ps((from) + (start)),               \
                               _mm512_sub_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(start)), \
                               _mm512_loadu_ps((from) + (start) + 16))
#define SPLORE_SQRT(x) _mm512_sqrt_ps(__m512(x))
#include "kernel_table.h"
