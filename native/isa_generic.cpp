// No flags: vectors of four floats, which every 64-bit processor has (SSE2, NEON).
#define SPLORE_LANES 4
#if defined(__aarch64__)
#define SPLORE_REGISTERS 32
#else
#define SPLORE_REGISTERS 16
#endif
#define SPLORE_ISA_NAME "generic"
#define SPLORE_TABLE kernels_generic
#include "kernel_table.h"
