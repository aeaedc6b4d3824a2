// Where the numbers of a value lie. There are two layouts, and a slice of the batch runs in one of them.
//
// Batch-interleaved layout, for many images: [channel][row][column][lane], one image to a lane. A tap of a convolution is then
// one aligned vector for all the images at once, whatever the stride.
//
// Planar layout, for few images: one plane of flattened pixels for each channel, neighbouring pixels in neighbouring lanes, so
// that a tap of a convolution that keeps the map's size is the whole plane, shifted. Small maps have no borders at all: they
// are gathered, and fill the lanes better.
//
// The borders are stored zeros. The right border of a row is the left border of the next one, and a plane's lower border is the
// upper border of the next plane (of the next image, in the planar layout).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "program.h"

namespace splore {

struct Storage {
  Shape shape{};
  ptrdiff_t offset = 0;   // floats from the start of the arena
  ptrdiff_t plane = 0;    // floats between channels
  ptrdiff_t row = 0;      // floats between rows
  ptrdiff_t column = 0;   // floats between pixels
  ptrdiff_t image = 0;    // floats between images: 1 in the batch-interleaved layout
  ptrdiff_t first = 0;    // floats from the start of a plane to its first pixel
  ptrdiff_t tail = 0;     // batch-interleaved layout: floats after the last plane, its lower border
  ptrdiff_t lanes = 0;    // of a vector
  ptrdiff_t vectors = 0;  // planar layout: vectors from the first pixel to the last one
  uint32_t fill = 0;      // the bits of what lies around the pixels: zeros, or four zero points of a value in bytes
  const int32_t* mask = nullptr;  // planar layout: which lanes of those vectors are pixels

  ptrdiff_t size() const { return shape.c * plane + tail; }
  // Mostly, in the second-level cache.
  bool stays_in_cache() const { return size() <= ptrdiff_t(1) << 18; }
  // The first pixel of channel 0.
  float* pixels(float* arena) const { return arena + offset + first; }
};

// Zeros that consumers want to find around a value.
struct Border {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  void include(const Border& other);
};

class Layout {
 public:
  // `planar` picks the layout; `images` of a slice: up to `lanes` in the batch-interleaved layout.
  Layout(bool planar, int images, int lanes) : planar(planar), images(images), lanes(lanes) {}

  // In the planar layout, values of one height and width share a geometry, so that maps run over whole planes: tell of every
  // border first.
  void reserve(const Shape& shape, const Border& border);
  Storage storage(const Shape& shape, const Border& border);
  bool bordered(const Shape& shape) const { return shape.h * shape.w > lanes; }

  const bool planar;
  const int images, lanes;

 private:
  const int32_t* mask(const Storage& storage);

  std::map<std::pair<int64_t, int64_t>, Border> borders_;
  std::map<std::pair<int64_t, int64_t>, std::vector<int32_t>> masks_;
};

}  // namespace splore
