#include "packings.h"

#include <algorithm>

#include "threads.h"

namespace splore {

std::shared_ptr<const Packing> Packings::find(int op, std::shared_ptr<const Packing> packed) {
  std::lock_guard<std::mutex> lock(splore::shared().mutex);  // a child after a fork must find this whole
  auto& list = known_[op];
  list.erase(std::remove_if(list.begin(), list.end(), [](const auto& known) { return known.expired(); }), list.end());
  for (const auto& known : list)
    if (auto other = known.lock(); other && other->same_as(*packed)) return other;
  list.push_back(packed);
  return packed;
}

int64_t Packings::bytes() const {
  int64_t bytes = 0;
  for (const auto& [op, list] : known_)
    for (const auto& known : list)
      if (const auto packed = known.lock()) bytes += packed->bytes();
  return bytes;
}

}  // namespace splore
