#include "arena.h"

#include <algorithm>

namespace splore {
namespace {

constexpr ptrdiff_t kMostFloats = ptrdiff_t(1) << 34;

ptrdiff_t round_up(ptrdiff_t x) { return (x + 15) / 16 * 16; }

}  // namespace

const Storage* Arena::add(const Storage& storage, int born, int dies) {
  values_.push_back({std::make_unique<Storage>(storage), born, dies});
  return values_.back().storage.get();
}

void Arena::keep(const Storage* storage, int dies) {
  for (Live& live : values_)
    if (live.storage.get() == storage) live.dies = std::max(live.dies, dies);
}

void Arena::join(int first) {
  for (Live& live : values_) {
    if (live.born == first + 1) live.born = first;
    if (live.dies == first) live.dies = first + 1;
  }
}

// The largest first, each at the lowest place that is free as long as it lives.
void Arena::place() {
  std::vector<Live*> order;
  for (Live& live : values_) order.push_back(&live);
  std::stable_sort(order.begin(), order.end(),
                   [](const Live* a, const Live* b) { return a->storage->size() > b->storage->size(); });
  const auto before = [](const Live* a, const Live* b) { return a->storage->offset < b->storage->offset; };
  std::vector<Live*> placed;  // by offset
  ptrdiff_t end = kGuard;
  for (Live* live : order) {
    ptrdiff_t at = kGuard;
    for (const Live* other : placed) {
      if (other->dies < live->born || live->dies < other->born) continue;
      if (other->storage->offset - at >= live->storage->size()) break;
      at = std::max(at, round_up(other->storage->offset + other->storage->size()));
    }
    live->storage->offset = at;
    end = std::max(end, at + live->storage->size());
    placed.insert(std::upper_bound(placed.begin(), placed.end(), live, before), live);
  }
  floats_ = round_up(end + kGuard);
  if (floats_ > kMostFloats) throw Error("the program needs too much memory");
}

}  // namespace splore
