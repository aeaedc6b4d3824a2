// A program file (docs/file_formats.md), read without trust.
#pragma once

#include <memory>

#include "file_operations.h"

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

  const Container container_;
  FileOperations operations_{container_};
  splore_program program_{};
};

}  // namespace splore
