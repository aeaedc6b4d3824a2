// No flags: see isa_generic.cpp.
#define SPLORE_LANES 4
#define SPLORE_ISA_NAME "generic"
#define SPLORE_INT_TABLE int_kernels_generic
#include "kernel_int_table.h"
