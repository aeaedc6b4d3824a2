// -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
#define SPLORE_LANES 16
#define SPLORE_ISA_NAME "avx512vnni"
#define SPLORE_INT_TABLE int_kernels_avx512vnni
#define SPLORE_DOT(sum, x, w) Ints(_mm512_dpbusd_epi32(__m512i(sum), __m512i(x), __m512i(w)))
#include "avx_gather.h"
#include "kernel_int_table.h"
