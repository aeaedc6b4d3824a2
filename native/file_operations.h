// The operations of a program file as the words and arrays of splore.h.
#pragma once

#include <deque>

#include "container.h"

namespace splore {

class FileOperations {
 public:
  explicit FileOperations(const Container& container) : container_(container) {}
  FileOperations(const FileOperations&) = delete;

  // Throws Error with what is wrong. The arrays lie in the container or here.
  void read(const Json& op);
  // The program of all that was read; throws Error where a tensor is left.
  splore_program program(const Json& input) const;

 private:
  const Tensor* find(const char* name) const;  // of the operation at hand; null for another
  const std::vector<int64_t>& shape(const char* name) const;  // throws Error where it is missing
  int64_t tensor(const char* name, size_t dimensions, bool needed);
  int64_t own(std::vector<float> values);
  int64_t own(std::vector<uint32_t> values);
  void read_attribute(const std::string& name, const Json& value);
  void read_factors(const Json& op);
  void read_tensors(int64_t kind);
  void read_weight(bool in_bytes);
  void read_positions();
  void read_resample();

  const Container& container_;
  std::vector<int64_t> words_, inputs_;
  std::vector<splore_array> arrays_;
  std::deque<std::vector<float>> floats_;
  std::deque<std::vector<uint32_t>> places_;
  size_t used_ = 0;           // tensors
  int64_t* words_at_ = nullptr;  // of the operation at hand
  size_t index_ = 0;
};

}  // namespace splore
