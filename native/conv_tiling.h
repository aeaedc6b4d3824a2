// The tiles of a convolution: where they lie on the map of its outputs, and what they read of its input.
#pragma once

#include "arena.h"
#include "kernels.h"
#include "layout.h"
#include "phases.h"

namespace splore {

// The last tile of a row or a map may reach back over the one before it: two threads then store equal sums in one place. And what
// a vector reads beyond its plane, up to so many floats, is masked away, while another thread may write it. ThreadSanitizer calls
// both a race, so what is built for it does neither.
#if defined(__SANITIZE_THREAD__)
constexpr bool kEachOnce = true;
constexpr ptrdiff_t kBeyond = 0;
#else
constexpr bool kEachOnce = false;
constexpr ptrdiff_t kBeyond = kGuard;
#endif

class ConvTiling {
 public:
  // Of a tile's first output: row and column, or in the planar layout the vector as x.
  struct Place {
    int64_t y, x;
  };

  // `phases`: that is what `in` holds.
  ConvTiling(const Window& window, const Storage& in, const Storage& map, const Layout& layout, int team, bool phases)
      : window_(window), in_(in), map_(map), layout_(layout), team_(team) {
    if (phases) phases_ = std::make_unique<Phases>(window);
  }
  ConvTiling(const ConvTiling&) = delete;

  bool readable_in_place() const;
  bool reads_phases() const { return phases_ != nullptr; }
  int64_t planes() const { return phases_ ? phases_->count() : 1; }  // of an input channel
  int64_t channels() const { return in_.shape.c / planes(); }        // of the input
  ptrdiff_t offset_of(int64_t i, int64_t j) const;  // of a tap, within an input channel
  // Of each tap of each input channel, floats from a tile's corner.
  std::vector<int32_t> offsets_in_place() const;

  // Tiles that fit the map and waste little by reaching back, the largest first: so many, of so many vectors at the most.
  // `pooled`: their sides are even; `once`: no output is computed twice.
  std::vector<TileShape> shapes(size_t most, int most_vectors, bool pooled, bool once) const;
  // Input channels whose part of a tile fits into so many bytes.
  int64_t block_for(TileShape s, bool gathered, bool inside, int64_t bytes) const;

  // The tiles are of this shape from now on. `gathered`: they are read into columns first.
  bool fits(TileShape s) const;
  void choose(TileShape s, bool gathered);
  int64_t down() const { return down_; }
  int64_t across() const { return across_; }
  int64_t tiles() const { return down_ * across_; }
  Place place(int64_t tile) const;
  const float* corner(const Place& at, const float* arena) const;
  // Of the place in a value of the map's size.
  ptrdiff_t offset(const Place& at, const Storage& value) const;
  const Gather* gather() const { return gathered_ ? &gather_ : nullptr; }

 private:
  void prepare_gather();
  void index_pixels();

  const Window& window_;
  const Storage& in_;
  const Storage& map_;
  const Layout& layout_;
  const int team_;
  std::unique_ptr<const Phases> phases_;
  TileShape shape_{1, 1};
  bool gathered_ = false;
  int64_t down_ = 1, across_ = 1;
  Gather gather_{};
  std::vector<int32_t> gather_index_, gather_taps_;
  std::vector<GatherVector> gather_vectors_;
};

}  // namespace splore
