// Where the windows of a pool lie.
#pragma once

#include <algorithm>
#include <cstdint>

#include "program.h"

namespace splore {

// The part of a window that lies on the map, along one side.
struct Span {
  int64_t begin, end;
  int64_t padded;  // how much of the window lies on the padded map
  int64_t size() const { return end - begin; }
};

inline Span span(int64_t output, int64_t stride, int64_t kernel, int64_t before, int64_t side, int64_t after) {
  const int64_t begin = output * stride - before;
  const int64_t end = begin + kernel;
  return {std::max<int64_t>(begin, 0), std::min(end, side), std::min(end, side + after) - begin};
}

// Whether the windows are 2 x 2, side by side, and cover the map: a convolution can do such a maximum for its tiles.
inline bool halves(const Op& op, const Shape& in) {
  const Window& w = op.window;
  return op.kind == SPLORE_MAX_POOL && w.kernel_h == 2 && w.kernel_w == 2 && w.stride_h == 2 && w.stride_w == 2 && !w.top &&
         !w.left && !w.bottom && !w.right && in.h % 2 == 0 && in.w % 2 == 0;
}

}  // namespace splore
