// A program file (docs/file_formats.md), read without trust.
#pragma once

#include <memory>

#include "container.h"

namespace splore {

// A program that holds its own arrays.
class ProgramFile {
 public:
  // Throws Error with what is wrong with the file, or where one image would take more than `image_bytes` to run (0: 256 MiB).
  ProgramFile(Container container, int64_t image_bytes);
  ProgramFile(const ProgramFile&) = delete;

  const splore_program& program() const { return program_; }
  const std::string* plans() const { return container_.text("splore.plans"); }  // as saved_plan.h has them, or null

 private:
  std::string checksum(const std::string& structure) const;
  void read(const Json& structure);
  void read(size_t index, const Json& op, int64_t* words);
  int64_t array(const std::string& name, size_t dimensions);
  const std::vector<int64_t>* shape(size_t index, const char* name) const;  // or null
  void check_shapes(size_t index, int64_t* words) const;

  const Container container_;
  std::vector<int64_t> words_, inputs_;
  std::vector<splore_array> arrays_;
  splore_program program_{};
};

}  // namespace splore
