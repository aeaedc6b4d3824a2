#include "int_conv_step.h"

#include <algorithm>
#include <set>

#include "conv_step.h"

namespace splore {
namespace {

constexpr int64_t kFirstLevel = 30 << 10;   // bytes of a tile's input that stay in the first-level cache
constexpr int64_t kSecondLevel = 640 << 10;  // and in the second-level one
constexpr int kMostVectors = 16;             // of a tile
constexpr int32_t kZeroOfT = 128;

}  // namespace

IntClamp int_clamp(int64_t act, const Quant& quant) {
  const float most = float(6 / double(quant.scale) + quant.zero);
  return {act == SPLORE_NONE ? 0.0f : float(quant.zero), act == SPLORE_RELU6 ? std::min(255.0f, most) : 255.0f};
}

IntLine int_line(const Op& affine, int64_t c, const Quant& in) {
  const double to = affine.quant.scale, factor = double(affine.scale[c]) * in.scale / to;
  const double offset = (double(affine.shift[c]) / to + affine.quant.zero) - factor * in.zero;
  return {float(factor), float(offset)};
}

IntConvStep::IntConvStep(int index, const Op& op, const Values& values, const Layout& layout, const IntKernels& kernels, int team)
    : TunedStep(index, &values.out),
      op_(op),
      in_(values.in),
      map_(values.out),
      residual_(values.residual),
      in_quant_(values.in_quant),
      residual_quant_(values.residual_quant),
      layout_(layout),
      kernels_(kernels),
      team_(team),
      tiling_(op.window, in_, map_, layout, team, values.phases) {
  make_rows();
  make_channels();
}

void IntConvStep::write_second(const Storage& storage, const Op& affine) {
  second = &storage;
  affine_ = &affine;
  for (int64_t i = 0; i < op_.int_weight.n; i++) {
    const IntLine line = int_line(affine, i, op_.quant);
    channels_[size_t(i)].second_factor = line.factor, channels_[size_t(i)].second_offset = line.offset;
  }
}

void IntConvStep::make_rows() {
  const IntWeight& w = op_.int_weight;
  rows_ = int_rows(w, op_.groups);
  if (w.rank) down_rows_ = int_rows(w.b, w.rank, w.channels, w.taps);
  row_blocks_ = int64_t(rows_.blocks.size()), down_blocks_ = int64_t(down_rows_.blocks.size());
}

// The factors, in float64 until they are whole.
void IntConvStep::make_channels() {
  const IntWeight& w = op_.int_weight;
  const double from = in_quant_.scale, to = op_.quant ? double(op_.quant.scale) : 1.0;
  const auto start = [](int32_t zero, int32_t sum) { return int32_t(0u - uint32_t(zero) * uint32_t(sum)); };
  channels_.resize(size_t(w.n));
  for (int64_t i = 0; i < w.n; i++) {
    IntChannel& c = channels_[size_t(i)];
    c = {};
    c.factor = float(double(w.scale[i]) * from / to);
    double offset = double(op_.bias[i]) / to + op_.quant.zero;
    if (residual_) offset = offset - residual_quant_.zero * double(residual_quant_.scale) / to;
    c.offset = float(offset);
    c.start = start(in_quant_.zero, rows_.sum(i));
    if (!w.rank) continue;
    c.up = float(double(w.a_scale[i]) * double(w.t_scale) / to);
    int32_t sum = 0;
    for (int64_t j = 0; j < w.rank; j++) sum += w.a[i * w.rank + j];
    c.up_start = start(kZeroOfT, sum);
  }
  directions_.resize(size_t(w.rank));
  for (int64_t j = 0; j < w.rank; j++) {
    directions_[size_t(j)] = {};
    directions_[size_t(j)].factor = float(double(w.b_scale[j]) * from / double(w.t_scale));
    directions_[size_t(j)].start = start(in_quant_.zero, down_rows_.sum(j));
  }
}

std::vector<ConvChoice> IntConvStep::candidates() const {
  std::vector<ConvChoice> list;
  const bool once = residual_ == &map_ || kEachOnce;  // over its own residual, no output may be computed twice
  for (const bool gathered : {false, true}) {
    if (!gathered && !tiling_.readable_in_place()) continue;
    // Gathering pays where reading in place is unaligned.
    if (gathered && tiling_.readable_in_place() && (!layout_.planar || op_.window.taps() == 1)) continue;
    for (const TileShape& s : tiling_.shapes(6, kMostVectors, false, once)) {
      ConvChoice c;
      c.gathered = gathered;
      while (kTiles[c.tile].rows != s.rows || kTiles[c.tile].columns != s.columns) c.tile++;
      const int64_t down = layout_.planar ? 1 : (map_.shape.h + s.rows - 1) / s.rows;
      const int64_t tiles = down * (((layout_.planar ? map_.vectors : map_.shape.w) + s.columns - 1) / s.columns);
      for (c.parts = 1; c.parts <= team_; c.parts += std::max(1, team_ - 1))
        if (c.parts == 1 ? tiles >= team_ : tiles < 4 * team_) add_blocks(c, list);
    }
  }
  return list;
}

// The choice with each size of block.
void IntConvStep::add_blocks(ConvChoice c, std::vector<ConvChoice>& list) const {
  const double row_blocks = double(row_blocks_ + down_blocks_) / double(op_.int_weight.n + op_.int_weight.rank);
  std::set<int64_t> seen;
  for (const int64_t bytes : {kSecondLevel, 3 * kFirstLevel, 3 * kFirstLevel / 2}) {
    c.block_channels = tiling_.block_for(kTiles[c.tile], c.gathered, false, bytes);
    // Between two blocks all sums are stored and loaded.
    const double blocks = row_blocks * double(c.block_channels) / double(tiling_.channels());
    if ((bytes == kSecondLevel || blocks >= 8) && seen.insert(c.block_channels).second) list.push_back(c);
  }
}

void IntConvStep::choose(const ConvChoice& choice) {
  choice_ = choice;
  const TileShape shape = kTiles[choice.tile];
  if (!tiling_.fits(shape)) throw Error("a kernel was chosen that does not fit the map");
  if (rows_.begins.empty()) make_rows();
  std::vector<int32_t> offsets;
  if (!choice.gathered) offsets = tiling_.offsets_in_place();
  packed_.reset();
  packed_ = std::make_shared<PackedIntConv>(rows_, down_rows_, op_.int_weight, offsets, tiling_.channels(), choice.block_channels,
                                            choice.parts, shape.rows * shape.columns * layout_.lanes);
  tiling_.choose(shape, choice.gathered);
  bind();
}

void IntConvStep::bind() {
  const Window& w = op_.window;
  kernel_ = kernels_.conv[choice_.tile][layout_.planar || choice_.gathered ? 0 : w.stride_w - 1];
  args_ = {};
  args_.n = int32_t(op_.int_weight.n), args_.rank = int32_t(op_.int_weight.rank);
  args_.blocks = packed_->blocks.data(), args_.block_count = int32_t(packed_->blocks.size());
  args_.down = packed_->down.data(), args_.up = packed_->up.data();
  args_.channels = channels_.data(), args_.directions = directions_.data();
  args_.floats = !op_.quant, args_.act = int32_t(op_.act);
  if (op_.quant) {
    const IntClamp clamp = int_clamp(op_.act, op_.quant);
    args_.low = clamp.low, args_.high = clamp.high, args_.fill = map_.fill;
  }
  if (second) {
    const IntClamp clamp = int_clamp(affine_->act, affine_->quant);
    args_.second_low = clamp.low, args_.second_high = clamp.high, args_.second_fill = second->fill;
    args_.second_row = second->row, args_.second_plane = second->plane;
  }
  args_.x_row = w.stride_h * in_.row;
  args_.out_row = map_.row, args_.out_plane = map_.plane;
  if (residual_) {
    const double to = op_.quant ? double(op_.quant.scale) : 1.0;
    args_.residual_factor = float(double(residual_quant_.scale) / to);
    args_.residual_row = residual_->row, args_.residual_plane = residual_->plane;
  }
  args_.gather = tiling_.gather();
  args_.fetch_input = !choice_.gathered && !in_.stays_in_cache();
  args_.fetch_output = op_.quant && !map_.stays_in_cache();
  args_.in_plane = tiling_.planes() * in_.plane;
  args_.first_tap = tiling_.offset_of(0, 0), args_.last_tap = tiling_.offset_of(w.kernel_h - 1, w.kernel_w - 1);
}

void IntConvStep::settle(Packings& packings) {
  packed_ = packings.shared(op, packed_);
  bind();
  rows_ = {}, down_rows_ = {};
}

void IntConvStep::run(int64_t task, const Run& run, const Scratch& scratch) const {
  const int64_t tiles = tiling_.tiles();
  const ConvTiling::Place at = tiling_.place(task % tiles);
  ConvTile tile{};
  tile.x = tiling_.corner(at, run.arena);
  const int64_t index = task % tiles;
  if (args_.fetch_input && index + 1 < tiles) tile.next = tiling_.corner(tiling_.place(index + 1), run.arena);
  const ptrdiff_t out_at = tiling_.offset(at, map_);
  if (layout_.planar) tile.vector = at.x, tile.mask = map_.mask + out_at;
  tile.out = map_.pixels(run.arena) + out_at;
  if (second) tile.second = second->pixels(run.arena) + tiling_.offset(at, *second);
  if (residual_) tile.residual = residual_->pixels(run.arena) + tiling_.offset(at, *residual_);
  kernel_(args_, packed_->parts[size_t(task / tiles)], tile, scratch);
}

ScratchSize IntConvStep::scratch() const {
  const TileShape shape = kTiles[choice_.tile];
  const ptrdiff_t tile = shape.rows * shape.columns * layout_.lanes;
  ScratchSize size;
  if (choice_.gathered) size.gathered = packed_->most_columns * tile;
  if (args_.block_count > 1) size.partial = (op_.int_weight.n + op_.int_weight.rank) * tile;
  size.t = (args_.rank + 3) / 4 * tile;
  return size;
}

// Of the blocks: each has four.
int64_t IntConvStep::multiply_adds() const {
  const IntWeight& w = op_.int_weight;
  return 4 * (row_blocks_ + down_blocks_ + w.n * ((w.rank + 3) / 4)) * map_.shape.h * map_.shape.w;
}

std::string IntConvStep::describe(const ConvChoice& choice) const {
  const TileShape shape = kTiles[choice.tile];
  std::string text = op_.int_weight.rank ? (row_blocks_ ? "int8 low rank + blocks " : "int8 low rank ") : "int8 blocks ";
  text += std::to_string(shape.rows) + "x" + std::to_string(shape.columns) + " block " + std::to_string(choice.block_channels);
  if (choice.parts > 1) text += " parts " + std::to_string(choice.parts);
  return text + (choice.gathered ? " gathered" : " in place");
}

std::string IntConvStep::signature() const {
  const Window& w = op_.window;
  const IntWeight& weight = op_.int_weight;
  const int64_t density = row_blocks_ * 40 / std::max<int64_t>(1, weight.n * tiling_.channels() * weight.taps);
  std::string text = "int8";
  for (const int64_t x : {tiling_.channels(),
                          in_.shape.h,
                          in_.shape.w,
                          weight.n,
                          map_.shape.h,
                          map_.shape.w,
                          int64_t(in_.plane),
                          int64_t(map_.plane),
                          w.kernel_h,
                          w.kernel_w,
                          w.stride_h,
                          w.stride_w,
                          w.dilation_h,
                          w.dilation_w,
                          w.top,
                          w.left,
                          op_.groups,
                          weight.rank,
                          density,
                          int64_t(residual_ != nullptr),
                          int64_t(residual_ == &map_),
                          int64_t(second != nullptr),
                          int64_t(bool(op_.quant))})
    text += "," + std::to_string(x);
  return text;
}

}  // namespace splore
