// -mavx512f -mavx512bw -mavx512vl -mavx512dq
#define SPLORE_LANES 16
#define SPLORE_REGISTERS 32
#define SPLORE_ISA_NAME "avx512"
#define SPLORE_TABLE kernels_avx512
#define SPLORE_SQRT(x) _mm512_sqrt_ps(__m512(x))
#include "avx_gather.h"
#include "kernel_table.h"
