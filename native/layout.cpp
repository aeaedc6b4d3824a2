#include "layout.h"

#include <algorithm>

namespace splore {
namespace {

ptrdiff_t round_up(ptrdiff_t x, ptrdiff_t to) { return (x + to - 1) / to * to; }

// The planes of a power of two would all fall into the same few sets of a cache, where a tile reads one place of many of them.
ptrdiff_t spread(ptrdiff_t plane, ptrdiff_t lanes) {
  const ptrdiff_t vectors = round_up(plane, lanes) / lanes;
  const ptrdiff_t more = vectors % 16 ? 0 : vectors >= 64 ? 9 : 1;
  return (vectors + more) * lanes;
}

// Several consumers' borders together may be far larger than any one of them.
void expect_size(const Storage& s) {
  if (s.plane > (ptrdiff_t(1) << 34) / s.shape.c) throw Error("the program needs too much memory");
}

}  // namespace

void Border::include(const Border& other) {
  top = std::max(top, other.top), left = std::max(left, other.left);
  bottom = std::max(bottom, other.bottom), right = std::max(right, other.right);
}

void Layout::reserve(const Shape& shape, const Border& border) { borders_[{shape.h, shape.w}].include(border); }

Storage Layout::storage(const Shape& shape, const Border& border) {
  Storage s;
  s.shape = shape;
  s.lanes = lanes;
  const Border wanted = !planar ? border : bordered(shape) ? borders_[{shape.h, shape.w}] : Border{};
  const int64_t horizontal = std::max(wanted.left, wanted.right), vertical = std::max(wanted.top, wanted.bottom);
  if (!planar) {
    s.column = lanes;
    s.image = 1;
    s.row = (horizontal + shape.w) * lanes;
    s.first = vertical * s.row + horizontal * lanes;
    s.plane = spread((vertical + shape.h) * s.row, lanes);
    s.tail = s.first;
    expect_size(s);
    return s;
  }
  s.column = 1;
  s.row = shape.w + horizontal;
  s.image = (shape.h + vertical) * s.row;
  s.first = round_up(vertical * s.row + horizontal, lanes);
  // The last image's lower border is not part of the vectors, but of what is read beyond them.
  const ptrdiff_t used = (images - 1) * s.image + (shape.h - 1) * s.row + shape.w;
  s.vectors = round_up(used, lanes) / lanes;
  s.plane = spread(s.first + s.vectors * lanes + round_up(vertical * s.row + horizontal, lanes), lanes);
  expect_size(s);
  s.mask = mask(s);
  return s;
}

const int32_t* Layout::mask(const Storage& s) {
  std::vector<int32_t>& mask = masks_[{s.shape.h, s.shape.w}];
  if (mask.empty()) {
    mask.resize(size_t(s.vectors * lanes));
    for (int i = 0; i < images; i++)
      for (int64_t y = 0; y < s.shape.h; y++) std::fill_n(mask.begin() + i * s.image + y * s.row, s.shape.w, -1);
  }
  return mask.data();
}

}  // namespace splore
