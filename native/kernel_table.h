// The table of the kernels of one instruction set. Include it in a file compiled with that set's flags, after defining
// SPLORE_LANES, SPLORE_REGISTERS (vector registers) and SPLORE_TABLE (the function that gives the table).
#include "kernel_conv.h"
#include "kernel_map.h"
#include "kernel_tensor.h"

namespace splore {

const Kernels* SPLORE_TABLE() {
  static const Kernels table = {SPLORE_ISA_NAME,
                                nullptr,
                                SPLORE_LANES,
                                multiply_adds,
                                kWinogradRows,
                                kPatternRows,
                                kPatternVectors,
                                {
  // clang-format off
#define SPLORE_TILE_KERNELS(R, C) {conv_tile<R, C, 1>, conv_tile<R, C, vectors_only(R, C) ? 1 : 2>},
                                    // clang-format on
                                    SPLORE_TILES(SPLORE_TILE_KERNELS)
#undef SPLORE_TILE_KERNELS
                                },
                                map,
                                pool,
                                halve,
                                halve_planar,
                                pool_row,
                                normalize,
                                softmax,
                                product,
                                interleave,
                                deinterleave};
  return &table;
}

}  // namespace splore
