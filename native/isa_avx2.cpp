// -mavx2 -mfma
#include <immintrin.h>
#define SPLORE_LANES 8
#define SPLORE_REGISTERS 16
#define SPLORE_ISA_NAME "avx2"
#define SPLORE_TABLE kernels_avx2
#define SPLORE_INDEX(index) _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index))
#define SPLORE_PICK(from, index) \
  _mm256_mask_i32gather_ps(_mm256_setzero_ps(), from, SPLORE_INDEX(index), _mm256_castsi256_ps(~SPLORE_INDEX(index)), 4)
#define SPLORE_SQRT(x) _mm256_sqrt_ps(__m256(x))
#include "kernel_table.h"
