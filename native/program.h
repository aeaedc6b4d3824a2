// The program after its check: what the rest of the engine may trust without looking again.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "splore.h"

namespace splore {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The elements that one value of one image may have, its zero padding included.
constexpr int64_t kMaxElements = int64_t(1) << 28;
constexpr int64_t kMaxOps = int64_t(1) << 14;
constexpr int64_t kMaxAttribute = int64_t(1) << 20;

struct Shape {
  int64_t c, h, w;
  int64_t elements() const { return c * h * w; }
  bool operator==(const Shape& o) const { return c == o.c && h == o.h && w == o.w; }
};

struct Window {
  int64_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  int64_t dilation_h = 1, dilation_w = 1;
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t strides() const { return stride_h * stride_w; }
};

// The matrix (n, k) of a convolution as a sum of parts; a part that is not there is null. The caller owns the memory.
struct Weight {
  int64_t n = 0, k = 0, rank = 0, nonzeros = 0;
  const float* dense = nullptr;
  const float* a = nullptr;
  const float* b = nullptr;
  const float* values = nullptr;
  const uint32_t* columns = nullptr;
  const uint32_t* rows = nullptr;
};

// `size` steps, each `stride` places on along an axis of a value: 0 for channels, 1 for rows, 2 for columns.
struct Factor {
  int axis;
  int64_t size, stride;
};

// A dimension that counts through its factors, the last one fastest.
using Factors = std::vector<Factor>;

// How a value is stored in bytes, scale (byte - zero); without a scale it is float32.
struct Quant {
  float scale = 0;
  int zero = 0;
  explicit operator bool() const { return scale > 0; }
  bool operator==(const Quant& o) const { return scale == o.scale && zero == o.zero; }
  uint32_t word() const { return uint32_t(zero) * 0x01010101u; }  // four zero points
};

// The same as `Weight` in signed bytes, as splore/engine/integer.py has it. `channels` and k are those of a group.
struct IntWeight {
  int64_t n = 0, channels = 0, taps = 0, k = 0, rank = 0, blocks_count = 0;
  const float* scale = nullptr;
  const int8_t* dense = nullptr;
  const int8_t* blocks = nullptr;
  const uint32_t* positions = nullptr;
  const uint32_t* rows = nullptr;
  const int8_t* a = nullptr;
  const int8_t* b = nullptr;
  const float* a_scale = nullptr;
  const float* b_scale = nullptr;
  float t_scale = 0;
};

struct Op {
  int64_t kind;
  int64_t act;
  std::vector<int> inputs;
  Window window;
  int64_t groups = 1;
  bool count_pad = false;
  Weight weight;
  const float* bias = nullptr;
  const float* scale = nullptr;  // of an affine operation, or of the relu(scale x + shift) before a convolution
  const float* shift = nullptr;
  // Of the operations on tensors; see splore.h.
  int64_t fn = 0;
  const float* numbers = nullptr;  // SPLORE_VALUES
  const uint32_t* places = nullptr;  // SPLORE_COLUMNS, of a resampling
  Factors channels, rows, columns;  // of a reordering
  int64_t offset[3] = {0, 0, 0};
  Quant quant;  // of its result
  IntWeight int_weight;
  const uint8_t* table = nullptr;
};

struct Program {
  std::vector<Op> ops;
  std::vector<Shape> shapes;  // of every value
  Quant quant(size_t value) const { return value ? ops[value - 1].quant : Quant{}; }
};

// Throws Error with the operation at fault.
Program check_program(const splore_program& program);

// That one image takes to run: the values that are alive at once, with the zero padding that any reader of a map of that size
// wants, and the largest table of what the windows of a convolution read.
double image_bytes(const Program& program);

}  // namespace splore
