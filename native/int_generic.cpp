// No flags: see isa_generic.cpp. What the target has anyhow is taken: the products of bytes of an AArch64 that has them.
#define SPLORE_LANES 4
#define SPLORE_ISA_NAME "generic"
#define SPLORE_INT_TABLE int_kernels_generic
#include "arm_dot.h"
#include "kernel_int_table.h"
