// What the checks of operations share.
#pragma once

#include "program.h"

namespace splore {

inline void expect(bool right, const char* what) {
  if (!right) throw Error(what);
}

inline Shape sized(Shape s) {
  expect(s.c >= 1 && s.h >= 1 && s.w >= 1 && s.c <= kMaxElements && s.h <= kMaxElements && s.w <= kMaxElements &&
             s.h <= kMaxElements / s.c && s.w <= kMaxElements / (s.c * s.h),
         "a value has no elements or too many");
  return s;
}

// The arrays of a program that is not checked yet.
class Arrays {
 public:
  explicit Arrays(const splore_program& raw) : raw_(raw) {}

  int64_t count(int64_t index) const {
    expect(index >= 0 && index < raw_.array_count, "an array is missing");
    return raw_.arrays[index].count;
  }
  const float* floats(int64_t index, int64_t count) const { return array<float>(index, count, SPLORE_FLOAT32); }
  const int8_t* bytes(int64_t index, int64_t count) const { return array<int8_t>(index, count, SPLORE_INT8); }
  const uint8_t* table(int64_t index) const { return array<uint8_t>(index, 256, SPLORE_UINT8); }
  const uint32_t* places(int64_t index, int64_t count) const { return array<uint32_t>(index, count, SPLORE_UINT32); }

 private:
  template <class T>
  const T* array(int64_t index, int64_t count, int64_t type) const {
    expect(index >= 0 && index < raw_.array_count, "an array is missing");
    const splore_array& a = raw_.arrays[index];
    expect(a.type == type, "an array has the wrong type");
    expect(a.count == count, "an array has the wrong number of elements");
    expect(a.data != nullptr || count == 0, "an array has no data");
    expect(reinterpret_cast<uintptr_t>(a.data) % alignof(T) == 0, "an array is not aligned to its elements");
    return static_cast<const T*>(a.data);
  }

  const splore_program& raw_;
};

// Checks an operation on tensors, SPLORE_REORDER or a later kind, fills in what it has, and gives the shape of its output.
Shape check_tensor_op(Op& op, const int64_t* word, const std::vector<Shape>& inputs, const Arrays& arrays);

struct IntWeightSize {
  int64_t n, channels, taps, groups;  // channels of a group
};

IntWeight int_weight_of(const int64_t* word, const Arrays& arrays, const IntWeightSize& size);

// Reads how the operation stores its result, and checks that it can, and can read its inputs as they are stored.
void check_quants(Op& op, const int64_t* word, const Arrays& arrays, const Program& program);

}  // namespace splore
