// -mavx512f -mavx512bw -mavx512vl -mavx512dq
#define SPLORE_LANES 16
#define SPLORE_ISA_NAME "avx512"
#define SPLORE_INT_TABLE int_kernels_avx512
#define SPLORE_MADD(x, w) Ints(_mm512_madd_epi16(__m512i(x), __m512i(w)))
#include "avx_gather.h"
#include "kernel_int_table.h"
