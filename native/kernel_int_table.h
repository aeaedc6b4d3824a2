// The table of the kernels in eight bits of one instruction set. Include it in a file compiled with that set's flags and without
// contraction, after defining SPLORE_LANES, SPLORE_INT_TABLE (the function that gives the table), and SPLORE_DOT or SPLORE_MADD.
#include "kernel_int_conv.h"
#include "kernel_int_map.h"

namespace splore {

const IntKernels* SPLORE_INT_TABLE() {
  static const IntKernels table = {SPLORE_ISA_NAME,
                                   {
  // clang-format off
#define SPLORE_TILE_KERNELS(R, C) {int_conv_tile<R, C, 1>, int_conv_tile<R, C, vectors_only(R, C) ? 1 : 2>},
                                       // clang-format on
                                       SPLORE_TILES(SPLORE_TILE_KERNELS)
#undef SPLORE_TILE_KERNELS
                                   },
                                   int_map,
                                   int_pool,
                                   int_multiply_adds};
  return &table;
}

}  // namespace splore
