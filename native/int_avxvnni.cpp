// -mavx2 -mavxvnni
#define SPLORE_LANES 8
#define SPLORE_ISA_NAME "avxvnni"
#define SPLORE_INT_TABLE int_kernels_avxvnni
#define SPLORE_DOT(sum, x, w) Ints(_mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(x), __m256i(w)))
#include "avx_gather.h"
#include "kernel_int_table.h"
