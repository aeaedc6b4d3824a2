#include "conv_tiling.h"

#include <algorithm>

namespace splore {
namespace {

constexpr int64_t kMostBlocks = 32;

int32_t checked(ptrdiff_t offset) {
  if (offset > INT32_MAX || offset < INT32_MIN) throw Error("a convolution is too large");
  return int32_t(offset);
}

}  // namespace

bool ConvTiling::readable_in_place() const {
  const Window& w = window_;
  if (phases_) return true;
  if (!layout_.planar) return w.stride_h >= 1 && w.stride_w <= 2;
  const bool same_map = w.stride_h == 1 && w.stride_w == 1 && in_.shape.h == map_.shape.h && in_.shape.w == map_.shape.w;
  return same_map && (layout_.bordered(in_.shape) || w.taps() == 1);
}

ptrdiff_t ConvTiling::offset_of(int64_t i, int64_t j) const {
  const Window& w = window_;
  if (!phases_) return (i * w.dilation_h - w.top) * in_.row + (j * w.dilation_w - w.left) * in_.column;
  const Phases::Tap tap = phases_->tap(i, j);
  return tap.phase * in_.plane + tap.row * in_.row + tap.column * in_.column;
}

std::vector<int32_t> ConvTiling::offsets_in_place() const {
  const Window& w = window_;
  std::vector<int32_t> offsets;
  offsets.reserve(size_t(channels() * w.taps()));
  for (int64_t c = 0; c < channels(); c++)
    for (int64_t i = 0; i < w.kernel_h; i++)
      for (int64_t j = 0; j < w.kernel_w; j++) offsets.push_back(checked(c * planes() * in_.plane + offset_of(i, j)));
  return offsets;
}

std::vector<TileShape> ConvTiling::shapes(size_t most, int most_vectors, bool pooled, bool once) const {
  struct Rated {
    TileShape shape;
    double outputs;  // computed for each one needed
  };
  std::vector<Rated> rated;
  double least = 1e9;
  for (const TileShape& s : kTiles) {
    if (s.rows * s.columns > most_vectors) continue;
    double outputs;
    if (layout_.planar) {
      if (s.rows > 1 || s.columns > map_.vectors) continue;
      if (once && map_.vectors % s.columns) continue;
      int64_t tiles = (map_.vectors + s.columns - 1) / s.columns;
      if (tiles >= team_) tiles = (tiles + team_ - 1) / team_ * team_;  // some threads have a tile more than others
      outputs = double(tiles * s.columns) / double(map_.vectors);
    } else {
      if (s.rows > map_.shape.h || s.columns > map_.shape.w || vectors_only(s.rows, s.columns)) continue;
      if (pooled && (s.rows % 2 || s.columns % 2)) continue;
      // Over its own residual, no output may be computed twice.
      if (once && (map_.shape.h % s.rows || map_.shape.w % s.columns)) continue;
      outputs = double((map_.shape.h + s.rows - 1) / s.rows * s.rows) / double(map_.shape.h) *
                double((map_.shape.w + s.columns - 1) / s.columns * s.columns) / double(map_.shape.w);
    }
    // A small tile reads its weights for too few outputs: count them as some more.
    outputs *= 1 + 1.2 / (s.rows * s.columns);
    rated.push_back({s, outputs});
    least = std::min(least, outputs);
  }
  std::vector<TileShape> shapes;
  std::sort(rated.begin(), rated.end(), [](const Rated& a, const Rated& b) { return a.outputs < b.outputs; });
  for (const Rated& r : rated)
    if (r.outputs <= least * 1.25 && shapes.size() < most) shapes.push_back(r.shape);
  return shapes;
}

int64_t ConvTiling::block_for(TileShape s, bool gathered, bool inside, int64_t bytes) const {
  const Window& w = window_;
  const int64_t reach_h = (s.rows - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1;
  const int64_t reach_w = (s.columns - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w + 1;
  int64_t floats = reach_h * reach_w * layout_.lanes;
  if (gathered)
    floats = w.taps() * s.rows * s.columns * layout_.lanes;
  else if (inside)
    floats = s.rows * s.columns * layout_.lanes;
  else if (layout_.planar) {  // a run of each flattened plane, and what the taps reach beyond it
    const int64_t down = phases_ ? (w.kernel_h - 1) * w.dilation_h / w.stride_h : (w.kernel_h - 1) * w.dilation_h;
    floats = planes() * (s.columns * layout_.lanes + std::min(w.kernel_h, down) * (in_.row + layout_.lanes));
  }
  const int64_t channels = this->channels();
  const int64_t fit = std::max<int64_t>(1, bytes / (floats * 4));
  const int64_t blocks = std::min(kMostBlocks, (channels + fit - 1) / fit);
  return (channels + blocks - 1) / blocks;
}

bool ConvTiling::fits(TileShape s) const {
  return layout_.planar ? s.columns <= map_.vectors : s.rows <= map_.shape.h && s.columns <= map_.shape.w;
}

void ConvTiling::choose(TileShape s, bool gathered) {
  shape_ = s, gathered_ = gathered;
  if (layout_.planar) {
    down_ = 1;
    across_ = (map_.vectors + s.columns - 1) / s.columns;
  } else {
    down_ = (map_.shape.h + s.rows - 1) / s.rows;
    across_ = (map_.shape.w + s.columns - 1) / s.columns;
  }
  gather_ = {};
  if (gathered) prepare_gather();
}

void ConvTiling::prepare_gather() {
  const Window& w = window_;
  const int lanes = layout_.lanes;
  gather_ = {};
  gather_index_.clear(), gather_vectors_.clear(), gather_taps_.clear();
  gather_.plane = in_.plane, gather_.fill = int32_t(in_.fill);
  gather_.tap_count = int32_t(w.taps());
  if (!layout_.planar || readable_in_place()) {
    gather_.row = w.stride_h * in_.row, gather_.column = layout_.planar ? lanes : w.stride_w * in_.column;
    gather_.plane = planes() * in_.plane;
    for (int64_t i = 0; i < w.kernel_h; i++)
      for (int64_t j = 0; j < w.kernel_w; j++) gather_taps_.push_back(checked(offset_of(i, j)));
    gather_.taps = gather_taps_.data();
    return;
  }
  gather_.vectors = map_.vectors;
  const size_t floats = size_t(map_.vectors) * size_t(lanes);
  gather_index_.assign(size_t(w.taps()) * floats, -1);
  size_t tap = 0;
  for (int64_t i = 0; i < w.kernel_h; i++)
    for (int64_t j = 0; j < w.kernel_w; j++, tap++)
      for (int image = 0; image < layout_.images; image++)
        for (int64_t y = 0; y < map_.shape.h; y++) {
          const int64_t from_y = y * w.stride_h + i * w.dilation_h - w.top;
          if (from_y < 0 || from_y >= in_.shape.h) continue;
          for (int64_t x = 0; x < map_.shape.w; x++) {
            const int64_t from_x = x * w.stride_w + j * w.dilation_w - w.left;
            if (from_x < 0 || from_x >= in_.shape.w) continue;
            gather_index_[tap * floats + size_t(image * map_.image + y * map_.row + x)] =
                checked(in_.first + image * in_.image + from_y * in_.row + from_x);
          }
        }
  gather_vectors_.assign(size_t(w.taps()) * size_t(map_.vectors), {kScattered, 0});
  for (size_t v = 0; v < gather_vectors_.size(); v++) {
    const int32_t* index = gather_index_.data() + v * size_t(lanes);
    // A run is known by its first place less the lanes before it.
    bool run = true;
    int32_t begin = INT32_MAX, end = INT32_MIN, first = 0;
    for (int l = 0; l < lanes; l++) {
      if (index[l] < 0) continue;
      if (end == INT32_MIN) first = index[l] - l;
      run = run && index[l] - l == first;
      begin = std::min(begin, index[l]), end = std::max(end, index[l]);
    }
    if (run && first >= -kBeyond && first + lanes <= in_.plane + kBeyond)
      gather_vectors_[v] = {kRun, first};
    else if (end - begin < 2 * lanes && begin + 2 * lanes <= in_.plane + kBeyond)
      gather_vectors_[v] = {kNear, begin};
  }
  gather_.index = gather_index_.data(), gather_.vector = gather_vectors_.data();
}

// The last tile of a row reaches back over the one before: it computes some outputs again rather than too many.
ConvTiling::Place ConvTiling::place(int64_t index) const {
  if (layout_.planar) return {0, std::max<int64_t>(0, std::min<int64_t>(index * shape_.columns, map_.vectors - shape_.columns))};
  return {std::min<int64_t>(index / across_ * shape_.rows, map_.shape.h - shape_.rows),
          std::min<int64_t>(index % across_ * shape_.columns, map_.shape.w - shape_.columns)};
}

const float* ConvTiling::corner(const Place& at, const float* arena) const {
  if (!layout_.planar)
    return arena + in_.offset + in_.first + at.y * window_.stride_h * in_.row + at.x * window_.stride_w * in_.column;
  return gather_.index ? arena + in_.offset : arena + in_.offset + in_.first + at.x * layout_.lanes;
}

ptrdiff_t ConvTiling::offset(const Place& at, const Storage& value) const {
  return at.x * layout_.lanes + (layout_.planar ? 0 : at.y * value.row);
}

}  // namespace splore
