// The memory of one run of a slice: values that are not alive at the same time share places in it.
#pragma once

#include <memory>
#include <vector>

#include "layout.h"

namespace splore {

constexpr ptrdiff_t kGuard = 256;  // floats before and after the values, for reads that are masked away

class Arena {
 public:
  // A value that is written at step `born` and read until step `dies`. The storage stays where it is as long as the arena lives.
  const Storage* add(const Storage& storage, int born, int dies);
  // Keeps a value until then at the least.
  void keep(const Storage* storage, int dies);
  // Steps `first` and `first` + 1 may be fused: they are one time. No step is in two such pairs.
  void join(int first);
  // Gives every value its offset, when all are known. Throws Error where they need too much memory.
  void place();
  ptrdiff_t floats() const { return floats_; }

 private:
  struct Live {
    std::unique_ptr<Storage> storage;
    int born, dies;
  };
  std::vector<Live> values_;
  ptrdiff_t floats_ = 0;
};

}  // namespace splore
