// The packed weights of an engine: where two slices pack a convolution alike, they hold it once.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace splore {

// A weight packed for a choice of kernel.
class Packing {
 public:
  virtual ~Packing() = default;
  virtual int64_t bytes() const = 0;
  virtual bool same_as(const Packing& other) const = 0;  // of the same operation
};

class Packings {
 public:
  // The same packing of operation `op` that another slice holds, or this one from now on.
  template <class P>
  std::shared_ptr<const P> shared(int op, const std::shared_ptr<const P>& packed) {
    return std::static_pointer_cast<const P>(find(op, packed));
  }
  int64_t bytes() const;  // of those that a slice holds; under the lock

 private:
  std::shared_ptr<const Packing> find(int op, std::shared_ptr<const Packing> packed);

  std::map<int, std::vector<std::weak_ptr<const Packing>>> known_;  // by operation
};

}  // namespace splore
