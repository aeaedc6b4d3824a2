// -mavx2 -mfma
#define SPLORE_LANES 8
#define SPLORE_REGISTERS 16
#define SPLORE_ISA_NAME "avx2"
#define SPLORE_TABLE kernels_avx2
#define SPLORE_SQRT(x) _mm256_sqrt_ps(__m256(x))
#include "avx_gather.h"
#include "kernel_table.h"
