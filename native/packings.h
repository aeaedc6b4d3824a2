// The packed weights of an engine: where two slices pack a convolution alike, they hold it once.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "weights.h"

namespace splore {

class Packings {
 public:
  // The same packing of operation `op` that another slice holds, or this one from now on.
  std::shared_ptr<const PackedConv> shared(int op, std::shared_ptr<const PackedConv> packed);
  int64_t bytes() const;  // of those that a slice holds; under the lock

 private:
  std::map<int, std::vector<std::weak_ptr<const PackedConv>>> known_;  // by operation
};

}  // namespace splore
