// The checks of operations on tensors: see src/splore/engine/tensor_ops.py.
#include <cmath>

#include "program_check.h"

namespace splore {
namespace {

constexpr int64_t kMaxFactors = 16;  // of a dimension
constexpr float kLarge = 1e30f;

int64_t side(const Shape& s, int axis) { return axis == 0 ? s.c : axis == 1 ? s.h : s.w; }

Shape reorder(Op& op, const int64_t* word, const Shape& x, const Arrays& arrays) {
  const int64_t count = arrays.count(word[SPLORE_COLUMNS]);
  expect(count >= 6 && count <= 6 + 9 * kMaxFactors, "a reordering has no factors or too many");
  const uint32_t* places = arrays.places(word[SPLORE_COLUMNS], count);
  expect(places[3] <= kMaxFactors && places[4] <= kMaxFactors && places[5] <= kMaxFactors &&
             6 + 3 * int64_t(places[3] + places[4] + places[5]) == count,
         "the factors of a reordering are not as many as it says");
  int64_t last[3];
  for (int axis = 0; axis < 3; axis++) last[axis] = op.offset[axis] = places[axis];
  const uint32_t* next = places + 6;
  int64_t sides[3] = {1, 1, 1};
  Factors* const dims[3] = {&op.channels, &op.rows, &op.columns};
  for (int dim = 0; dim < 3; dim++)
    for (uint32_t i = 0; i < places[3 + dim]; i++, next += 3) {
      const Factor factor{int(next[0] & 3), next[1], next[2]};
      expect(next[0] <= 2 && factor.size >= 1 && factor.size <= kMaxElements && factor.stride <= kMaxElements,
             "a factor of a reordering is out of range");
      last[factor.axis] += (factor.size - 1) * factor.stride;
      sides[dim] *= factor.size;
      expect(sides[dim] <= kMaxElements, "a value has too many elements");
      dims[dim]->push_back(factor);
    }
  for (int axis = 0; axis < 3; axis++) expect(last[axis] < side(x, axis), "a reordering reads beyond its input");
  return {sides[0], sides[1], sides[2]};
}

Shape resample(Op& op, const int64_t* word, const Shape& x, const Arrays& arrays) {
  op.window.kernel_h = word[SPLORE_KERNEL_H], op.window.kernel_w = word[SPLORE_KERNEL_W];
  const Shape out = sized({x.c, word[SPLORE_SIZE_H], word[SPLORE_SIZE_W]});
  const int64_t rows = sized({out.h, op.window.kernel_h, 1}).elements();
  const int64_t columns = sized({out.w, op.window.kernel_w, 1}).elements();
  op.places = arrays.places(word[SPLORE_COLUMNS], rows + columns);
  op.numbers = arrays.floats(word[SPLORE_VALUES], rows + columns);
  for (int64_t i = 0; i < rows + columns; i++)
    expect(op.places[i] < (i < rows ? x.h : x.w), "a resampling reads beyond its input");
  return out;
}

Shape combined(Op& op, const int64_t* word, const Shape& a, const Shape& b) {
  op.fn = word[SPLORE_FN];
  expect(op.fn >= SPLORE_FN_ADD && op.fn <= SPLORE_FN_MIN, "no such function of two numbers");
  expect((b.c == a.c || b.c == 1) && ((b.h == a.h && b.w == a.w) || (b.h == 1 && b.w == 1)),
         "a combination needs a second value that fits the first one");
  return a;
}

Shape product(Op& op, const int64_t* word, const Shape& x, const Shape& b, const Arrays& arrays) {
  expect(x.c % op.groups == 0 && b.c % op.groups == 0, "the groups don't divide the channels");
  const bool transposed = op.kind == SPLORE_MATMUL_TRANSPOSED;
  const int64_t k = x.c / op.groups;
  expect(x.h == 1 && b.h == 1 && k == (transposed ? b.c / op.groups : b.w), "the factors of a product don't fit");
  op.numbers = arrays.floats(word[SPLORE_VALUES], 1);
  expect(std::fabs(op.numbers[0]) < kLarge, "the scale of a product is out of range");
  const int64_t n = transposed ? b.w : b.c / op.groups;
  expect(n <= kMaxElements / op.groups, "a value has too many elements");
  return {op.groups * n, 1, x.w};
}

Shape grouped(const Op& op, const Shape& x) {
  expect(x.c % op.groups == 0, "the groups don't divide the channels");
  return x;
}

}  // namespace

Shape check_tensor_op(Op& op, const int64_t* word, const std::vector<Shape>& inputs, const Arrays& arrays) {
  const bool two = op.kind == SPLORE_COMBINE || op.kind == SPLORE_MATMUL || op.kind == SPLORE_MATMUL_TRANSPOSED;
  expect(inputs.size() == (op.kind == SPLORE_CONSTANT ? 0 : two ? 2 : 1), "an operation has the wrong number of inputs");
  if (op.kind >= SPLORE_NORM_PIXEL) {
    op.groups = word[SPLORE_GROUPS];
    expect(op.groups >= 1 && op.groups <= kMaxAttribute, "the groups are out of range");
  }
  switch (op.kind) {
    case SPLORE_REORDER:
      return reorder(op, word, inputs[0], arrays);
    case SPLORE_RESAMPLE:
      return resample(op, word, inputs[0], arrays);
    case SPLORE_CONSTANT: {
      const Shape out = sized({word[SPLORE_OUTPUTS], word[SPLORE_SIZE_H], word[SPLORE_SIZE_W]});
      op.numbers = arrays.floats(word[SPLORE_VALUES], out.elements());
      return out;
    }
    case SPLORE_COMBINE:
      return combined(op, word, inputs[0], inputs[1]);
    case SPLORE_LEAKY:
      op.scale = arrays.floats(word[SPLORE_SCALE], inputs[0].c);
      return inputs[0];
    case SPLORE_CLAMP:
      op.numbers = arrays.floats(word[SPLORE_VALUES], 2);
      expect(op.numbers[0] <= op.numbers[1], "the limits of a clamp are no range");
      return inputs[0];
    case SPLORE_NORM_PIXEL:
    case SPLORE_NORM_GROUP:
      op.scale = arrays.floats(word[SPLORE_SCALE], inputs[0].c);
      op.shift = arrays.floats(word[SPLORE_SHIFT], inputs[0].c);
      op.numbers = arrays.floats(word[SPLORE_VALUES], 1);
      expect(op.numbers[0] >= 0 && op.numbers[0] < kLarge, "the eps of a normalisation is out of range");
      return grouped(op, inputs[0]);
    case SPLORE_SOFTMAX:
      return grouped(op, inputs[0]);
    case SPLORE_MATMUL:
    case SPLORE_MATMUL_TRANSPOSED:
      return product(op, word, inputs[0], inputs[1], arrays);
    default:
      throw Error("no such kind of operation");
  }
}

}  // namespace splore
