// -mavx2
#define SPLORE_LANES 8
#define SPLORE_ISA_NAME "avx2"
#define SPLORE_INT_TABLE int_kernels_avx2
#define SPLORE_MADD(x, w) Ints(_mm256_madd_epi16(__m256i(x), __m256i(w)))
#include "avx_gather.h"
#include "kernel_int_table.h"
