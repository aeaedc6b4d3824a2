// A safetensors file, read without trust: what it may take is bounded by its size.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "json.h"
#include "weights.h"

namespace splore {

struct Tensor {
  int64_t type = 0;  // as in splore_array
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes of the data
  int64_t count() const;
};

class Container {
 public:
  // Throw Error with what is wrong with the file.
  static Container open(const char* path);
  static Container read(const void* bytes, size_t size);

  // A text of the metadata; null for another.
  const std::string* text(std::string_view name) const;
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  // Where a tensor lies, as long as the container lives.
  const char* bytes(const Tensor& tensor) const { return data_.data() + tensor.begin; }

 private:
  template <class Take>
  static Container parse(uint64_t size, Take take);
  void find_tensors();

  Json header_;
  AlignedVector<char> data_;
  std::map<std::string, Tensor> tensors_;
};

void expect(bool right, const std::string& what);  // throws Error
void expect_keys(const Json& object, const std::vector<std::string>& keys);
std::string shown(const std::string& text);        // of a file, in a message: not all of it

}  // namespace splore
