#include "conv_step.h"

#include <algorithm>

#include "arena.h"

namespace splore {
namespace {

constexpr size_t kLongStream = 1 << 15;  // entries that don't

}  // namespace

ConvStep::ConvStep(int index, const Op& op, const Values& values, const Layout& layout, const Kernels& kernels, int team)
    : TunedStep(index, values.pooled ? values.pooled : &values.out),
      op_(op),
      in_(values.in),
      map_(values.out),
      residual_(values.residual),
      pooled_(values.pooled != nullptr),
      layout_(layout),
      kernels_(kernels),
      team_(team),
      nonzeros_(count_nonzeros(op)),
      tiling_(op.window, in_, map_, layout, team, values.phases) {}

void ConvStep::write_second(const Storage& storage, const float* scale, const float* shift) {
  second = &storage;
  second_scale_ = scale, second_shift_ = shift;
}

void ConvStep::choose(const ConvChoice& choice) {
  choice_ = choice;
  const TileShape shape = kTiles[choice.tile];
  const bool sees = choice.inside ? may_stay_inside(shape) : !must_stay_inside();
  if (!tiling_.fits(shape) || !sees || (choice.winograd && !may_transform(shape)))
    throw Error("a kernel was chosen that does not fit the map");
  const int tile_floats = shape.rows * shape.columns * layout_.lanes;
  std::vector<int32_t> offsets;
  if (!choice.gathered) offsets = tiling_.offsets_in_place();
  PackRequest request{};
  request.channels = tiling_.channels(), request.taps = op_.window.taps(), request.block_channels = choice.block_channels;
  request.parts = choice.parts, request.tile_floats = tile_floats, request.gathered = choice.gathered;
  request.dense = choice.dense, request.dense_finish = choice.dense_finish, request.inside = choice.inside;
  request.winograd_rows = choice.winograd ? kernels_.winograd_rows : 0;
  request.pattern_rows = choice.pattern ? kernels_.pattern_rows : 0;
  request.offsets = &offsets;
  packed_.reset();
  if (choice.dense && folded_.empty()) folded_ = fold(op_);
  if (!choice.dense && !matrix_) matrix_ = std::make_unique<SparseMatrix>(op_, tiling_.channels());
  packed_ = std::make_shared<PackedConv>(op_, matrix_.get(), folded_.data(), request);
  bind();
}

// Points the kernel at the packed weight, and counts the tiles.
void ConvStep::bind() {
  const ConvChoice& choice = choice_;
  const TileShape shape = kTiles[choice.tile];
  const Window& w = op_.window;
  kernel_ = kernels_.conv[choice.tile][layout_.planar || choice.gathered ? 0 : w.stride_w - 1];
  args_ = {};
  args_.n = int32_t(op_.weight.n), args_.act = int32_t(op_.act);
  args_.rank = choice.dense ? 0 : int32_t(op_.weight.rank);
  args_.blocks = packed_->blocks.data(), args_.block_count = int32_t(packed_->blocks.size());
  args_.bias = op_.bias, args_.a = op_.weight.a;
  args_.a_packed = packed_->a_packed.empty() ? nullptr : packed_->a_packed.data();
  args_.t_offsets = packed_->t_offsets.data();
  args_.taps = int32_t(w.taps());
  args_.x_row = w.stride_h * in_.row;
  args_.inside = choice.inside;
  args_.fetch_input = !choice.gathered && !in_.stays_in_cache();
  args_.fetch_output = !pooled_ && !map_.stays_in_cache();
  args_.fetch_entries = packed_->entries.size() + packed_->words.size() / 2 > kLongStream;
  args_.out_row = pooled_ ? shape.columns * layout_.lanes : map_.row;
  args_.out_plane = pooled_ ? shape.rows * shape.columns * layout_.lanes : map_.plane;
  if (second) {
    args_.second_scale = second_scale_, args_.second_shift = second_shift_;
    args_.second_row = second->row, args_.second_plane = second->plane;
  }
  if (residual_) args_.residual_row = residual_->row, args_.residual_plane = residual_->plane;
  tiling_.choose(shape, choice.gathered);
  args_.gather = tiling_.gather();
}

void ConvStep::settle(Packings& packings) {
  packed_ = packings.shared(op, packed_);
  bind();
  matrix_.reset();
  folded_ = {};
}

void ConvStep::run(int64_t task, const Run& run, const Scratch& scratch) const {
  const int64_t tiles = tiling_.tiles(), index = task % tiles;
  const ConvPart& part = packed_->parts[size_t(task / tiles)];
  const ConvTiling::Place at = tiling_.place(index);
  ConvTile tile{};
  tile.x = tiling_.corner(at, run.arena);
  if (args_.fetch_input && index + 1 < tiles) tile.next = tiling_.corner(tiling_.place(index + 1), run.arena);
  const ptrdiff_t out_at = tiling_.offset(at, map_);
  if (layout_.planar) {
    tile.vector = at.x;
    tile.mask = map_.mask + out_at;
  }
  tile.out = pooled_ ? scratch.outputs : map_.pixels(run.arena) + out_at;
  if (second) tile.second = second->pixels(run.arena) + tiling_.offset(at, *second);
  if (residual_) tile.residual = residual_->pixels(run.arena) + tiling_.offset(at, *residual_);
  kernel_(args_, part, tile, scratch);
  if (pooled_) pool_tile(part, at, scratch.outputs, run.arena);
}

// The maxima of the 2 x 2 windows of a tile.
void ConvStep::pool_tile(const ConvPart& part, const ConvTiling::Place& at, const float* tile, float* arena) const {
  const TileShape shape = kTiles[choice_.tile];
  HalveArgs args{};
  args.channels = part.end - part.begin, args.rows = shape.rows / 2, args.columns = shape.columns / 2;
  args.x = tile + part.begin * args_.out_plane, args.plane = args_.out_plane, args.row = args_.out_row;
  args.out = out->pixels(arena) + part.begin * out->plane + at.y / 2 * out->row + at.x / 2 * out->column;
  args.out_plane = out->plane, args.out_row = out->row;
  kernels_.halve(args);
}

bool ConvStep::can_fuse_rows(const ConvStep& reader) const {
  // What the reader writes over must not be what this one still reads, nor what its last tiles, which reach back, write again.
  const Storage* over = reader.residual_ == &reader.map_ ? reader.residual_ : nullptr;
  return (&reader.in_ == out || &reader.in_ == second) && !(over && (over == &in_ || over == residual_ || over == out));
}

void ConvStep::run_tile_row(int64_t row, const Run& run, const Scratch& scratch) const {
  for (int64_t i = 0; i < tiling_.across(); i++) this->run(row * tiling_.across() + i, run, scratch);
}

// Through its window, and one row for each row as its residual.
int64_t ConvStep::rows_needed(int64_t tile_row, const ConvStep& maker) const {
  const Window& w = op_.window;
  const int64_t last = tiling_.place(tile_row * tiling_.across()).y + kTiles[choice_.tile].rows - 1;
  const int64_t read = std::min(in_.shape.h, last * w.stride_h + (w.kernel_h - 1) * w.dilation_h - w.top + 1);
  return residual_ == maker.out ? std::max(read, last + 1) : read;
}

int64_t ConvStep::rows_made(int64_t tile_row) const {
  const int64_t rows = tiling_.place(tile_row * tiling_.across()).y + kTiles[choice_.tile].rows;
  return pooled_ ? rows / 2 : rows;
}

ScratchSize ConvStep::scratch() const {
  const TileShape shape = kTiles[choice_.tile];
  const ptrdiff_t tile = shape.rows * shape.columns * layout_.lanes;
  ScratchSize size;
  if (choice_.gathered) size.gathered = packed_->most_columns * tile;
  if (args_.block_count > 1 || args_.a_packed) size.partial = (op_.weight.n + kRowGroup - 1) / kRowGroup * kRowGroup * tile;
  size.t = (args_.rank + kRowGroup - 1) / kRowGroup * kRowGroup * tile;
  if (pooled_) size.outputs = op_.weight.n * tile;
  return size;
}

int64_t ConvStep::multiply_adds() const {
  const int64_t pixels = map_.shape.h * map_.shape.w;
  const Weight& w = op_.weight;
  // Inside the map a tap down or right, up or left, sees a row or a column less.
  const int64_t seen = choice_.inside ? (3 * map_.shape.h - 2) * (3 * map_.shape.w - 2) : kInsideTaps * pixels;
  const auto of_input = [&](int64_t weights) { return weights * seen / kInsideTaps; };
  if (choice_.dense) return of_input(w.n * w.k);
  const int64_t sparse = of_input(nonzeros_);
  if (!choice_.winograd) return sparse + of_input(w.rank * w.k) + w.rank * w.n * pixels;
  const TileShape shape = kTiles[choice_.tile];
  const auto multiplied = [](int64_t outputs) { return outputs / 2 * 4 + outputs % 2 * 3; };
  const int64_t tiles = tiling_.tiles() * multiplied(shape.rows) * multiplied(shape.columns);
  return sparse + w.rank * (w.n * pixels + tiling_.channels() * tiles);
}

std::string ConvStep::describe(const ConvChoice& choice) const {
  const TileShape shape = kTiles[choice.tile];
  std::string text = choice.dense ? "dense" : choice.pattern ? "pattern" : "sparse";
  if (!choice.dense && op_.weight.rank) {
    const std::string low_rank = choice.winograd ? "winograd" : "low rank";
    text = nonzeros_ ? low_rank + " + " + text : low_rank;
  }
  if (choice.inside) text += " inside";
  if (choice.dense_finish) text += " A dense";
  text += " " + std::to_string(shape.rows) + "x" + std::to_string(shape.columns);
  text += " block " + std::to_string(choice.block_channels);
  if (choice.parts > 1) text += " parts " + std::to_string(choice.parts);
  return text + (choice.gathered ? " gathered" : " in place");
}

}  // namespace splore
