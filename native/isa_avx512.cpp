// -mavx512f -mavx512bw -mavx512vl -mavx512dq
#include <immintrin.h>
#define SPLORE_LANES 16
#define SPLORE_REGISTERS 32
#define SPLORE_ISA_NAME "avx512"
#define SPLORE_TABLE kernels_avx512
#define SPLORE_PICK(from, index)                                                                                      \
  _mm512_mask_i32gather_ps(_mm512_setzero_ps(), _mm512_movepi32_mask(~_mm512_loadu_si512(index)), _mm512_loadu_si512(index), \
                           from, 4)
#include "kernel_table.h"
