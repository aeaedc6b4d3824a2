// Which kernels are worth timing for a convolution.
#include <algorithm>
#include <cmath>
#include <set>

#include "conv_step.h"

namespace splore {
namespace {

constexpr int64_t kFirstLevel = 30 << 10;  // bytes of a tile's input that stay in the first-level cache, with room for the rest
constexpr int64_t kSecondLevel = 640 << 10;  // and in the second-level one
constexpr int kMostVectors = 16;  // of a tile
constexpr int64_t kMostFolded = int64_t(1) << 26;  // elements of a weight that is folded dense

bool three_by_three(const Window& w) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && w.dilation_h == 1 && w.dilation_w == 1;
}

}  // namespace

std::vector<ConvChoice> ConvStep::candidates() const {
  std::vector<ConvChoice> list;
  const bool once = residual_ == &map_ || kEachOnce;  // over its own residual, no output may be computed twice
  for (const bool gathered : {false, true}) {
    if (!gathered && !tiling_.readable_in_place()) continue;
    // Gathering pays where reading in place is unaligned.
    if (gathered && tiling_.readable_in_place() && (!layout_.planar || op_.window.taps() == 1)) continue;
    for (const bool pattern : {false, true}) {
      if (pattern && !may_have_patterns()) continue;
      for (const TileShape& s : pattern ? tiling_.shapes(4, kernels_.pattern_vectors, pooled_, once)
                                        : tiling_.shapes(6, kMostVectors, pooled_, once)) {
        ConvChoice c;
        c.gathered = gathered, c.pattern = pattern;
        while (kTiles[c.tile].rows != s.rows || kTiles[c.tile].columns != s.columns) c.tile++;
        const int64_t down = layout_.planar ? 1 : (map_.shape.h + s.rows - 1) / s.rows;
        const int64_t across = ((layout_.planar ? map_.vectors : map_.shape.w) + s.columns - 1) / s.columns,
                      tiles = down * across;
        // Few tiles are cut further, into output channels: what comes before S x is then done more than once.
        for (c.parts = 1; c.parts <= team_; c.parts += std::max(1, team_ - 1))
          if (c.parts == 1 ? tiles >= team_ : tiles < 4 * team_) add_blocks(c, list);
      }
    }
  }
  return list;
}

bool may_stay_inside(const Window& w, const Shape& in, const Shape& out) {
  const bool keeps_map = in.h == out.h && in.w == out.w && three_by_three(w) && w.top == 1 && w.left == 1;
  return keeps_map && std::any_of(std::begin(kTiles), std::end(kTiles), [&](const TileShape& s) {
           return may_be_inside(s.rows, s.columns) && s.rows == out.h && s.columns == out.w;
         });
}

// Whether a tile is the whole map, and the window's taps see its borders.
bool ConvStep::may_stay_inside(TileShape s) const {
  return !layout_.planar && s.rows == map_.shape.h && s.columns == map_.shape.w &&
         splore::may_stay_inside(op_.window, in_.shape, map_.shape);
}

// It asked for no border; what other readers asked for may be too narrow.
bool ConvStep::must_stay_inside() const { return !layout_.planar && splore::may_stay_inside(op_.window, in_.shape, map_.shape); }

// Whether B can be transformed: neighbouring outputs share the inputs of 3 x 3 windows.
bool ConvStep::may_transform(TileShape s) const {
  return !layout_.planar && op_.weight.rank && op_.groups == 1 && s.columns > 1 && three_by_three(op_.window);
}

// Whether neighbouring output channels often have entries in the same column.
bool ConvStep::may_have_patterns() const {
  const int64_t n = op_.weight.n / op_.groups, k = tiling_.channels() / op_.groups * op_.window.taps();
  return n >= kernels_.pattern_rows && double(nonzeros_) > 0.1 * double(op_.weight.n * k);
}

// The choice with each size of block: sparse (or in patterns), inside the map, and dense.
void ConvStep::add_blocks(ConvChoice c, std::vector<ConvChoice>& list) const {
  const Weight& w = op_.weight;
  const TileShape shape = kTiles[c.tile];
  const int64_t channels = tiling_.channels(), k = channels * op_.window.taps(), vectors = shape.rows * shape.columns;
  const double density = double(nonzeros_) / double(w.n * k), row_entries = density * double(k);
  const bool may_fold = op_.groups == 1 && w.n * k <= kMostFolded;
  auto block = [&](int64_t bytes) {
    // An output channel of a grouped convolution reads few channels: they are in the cache anyhow.
    if (!c.gathered && op_.groups > 1) return channels;
    return tiling_.block_for(shape, c.gathered, c.inside, bytes);
  };
  // At low densities a dense kernel cannot win; where all is dense a stream cannot.
  const bool try_dense = may_fold && (density > 0.1 || w.rank * (w.n + k) > w.n * k / 3 || k <= 64 || !w.rank);
  const bool try_sparse = !may_fold || density < 0.75;
  const auto may_choose = [&](bool inside) {
    return inside ? !c.pattern && !c.gathered && may_stay_inside(shape) : !must_stay_inside();
  };
  std::set<int64_t> seen;
  for (const bool inside : {false, true}) {
    if (!try_sparse || !may_choose(inside)) continue;
    c.dense = false, c.inside = inside, c.winograd = !c.gathered && !inside && may_transform(shape);
    c.dense_finish = !c.pattern && w.rank && (w.rank >= 8 || !nonzeros_);
    // The first level of the cache, with more of it or less for other things, and the second. Small blocks need enough entries
    // of a row to pay.
    for (const int64_t bytes : {2 * kFirstLevel, kFirstLevel * 3 / 2, kFirstLevel, kSecondLevel}) {
      c.block_channels = block(bytes);
      const double entries = row_entries * double(c.block_channels) / double(channels);
      const bool pays = bytes == kSecondLevel || row_entries == 0 || (inside ? entries >= 36 : entries * double(vectors) >= 48);
      if (pays && seen.insert(c.block_channels).second) list.push_back(c);
    }
    if (c.winograd && !seen.empty()) {  // B costs what it does whatever the block: try the other way once
      c.block_channels = list[list.size() - seen.size()].block_channels, c.winograd = false;
      list.push_back(c);
    }
    seen.clear();
  }
  const bool inside = may_choose(true);
  if (try_dense && !c.pattern && may_choose(inside)) {
    c.dense = true, c.inside = inside, c.dense_finish = c.winograd = false;
    for (const int64_t bytes : {kFirstLevel, 4 * kFirstLevel}) {
      c.block_channels = block(bytes);
      if (seen.insert(c.block_channels).second) list.push_back(c);
    }
  }
}

std::string ConvStep::signature() const {
  const Window& w = op_.window;
  const double elements = double(op_.weight.n * tiling_.channels() * w.taps());
  const int64_t density = std::lround(40.0 * double(nonzeros_) / elements);
  const int64_t shapes[] = {tiling_.channels(), in_.shape.h,  in_.shape.w, map_.shape.c,
                            map_.shape.h,       map_.shape.w, in_.plane,   map_.plane};
  const int64_t window[] = {w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w, w.top, w.left};
  const int64_t rest[] = {op_.groups,         op_.weight.rank,   density, residual_ != nullptr,
                          residual_ == &map_, second != nullptr, pooled_};
  std::string text;
  const auto add = [&](int64_t x) { text += std::to_string(x) + ","; };
  std::for_each(std::begin(shapes), std::end(shapes), add);
  std::for_each(std::begin(window), std::end(window), add);
  std::for_each(std::begin(rest), std::end(rest), add);
  return text;
}

}  // namespace splore
