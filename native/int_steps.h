// The steps in eight bits that are no convolutions.
#pragma once

#include <cstring>
#include <vector>

#include "kernels_int.h"
#include "step.h"

namespace splore {

// An input of a step: where it lies, its channels, and how it is stored.
struct IntValue {
  const Storage* storage;
  int64_t channels;
  Quant quant;
};

std::unique_ptr<Step> int_map_step(int index, const Op& op, std::vector<IntValue> inputs, int64_t channels, const Layout& layout,
                                   const IntKernels& kernels, const Storage& out);
std::unique_ptr<Step> int_flatten_step(int index, const Layout& layout, const Storage& in, const Storage& out);
std::unique_ptr<Step> int_pool_step(int index, const Op& op, const Quant& in_quant, const Layout& layout,
                                    const IntKernels& kernels, const Storage& in, const Storage& out);
// The way in, and the conversion behind it.
std::unique_ptr<Step> int_input_step(const Shape& shape, const Quant& quant, const Layout& layout, const Kernels& kernels,
                                     const Storage& out);

}  // namespace splore
