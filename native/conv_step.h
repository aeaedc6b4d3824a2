// A convolution: its candidate kernels, the one that was chosen, and its weights packed for that.
#pragma once

#include "conv_tiling.h"
#include "packings.h"
#include "tuned_step.h"
#include "weights.h"

namespace splore {

// Whether a 3 x 3 window keeps a map that is one tile: the kernels then know what it sees of the border, and read none.
bool may_stay_inside(const Window& window, const Shape& in, const Shape& out);

// What it costs and computes is in conv_step.cpp, which kernels are worth timing for it in conv_candidates.cpp.
class ConvStep : public TunedStep {
 public:
  struct Values {
    const Storage& in;
    const Storage& out;
    const Storage* residual;
    const Storage* pooled;  // the maxima of 2 x 2 windows of `out` go there, and `out` nowhere; or null
    bool phases;            // that is what `in` holds
  };
  // Fuses a second output, relu(scale y + shift), to `storage`: the input of a convolution that wants it so.
  void write_second(const Storage& storage, const float* scale, const float* shift);

  // `team`: the threads that will share the tasks.
  ConvStep(int index, const Op& op, const Values& values, const Layout& layout, const Kernels& kernels, int team);

  std::vector<ConvChoice> candidates() const override;
  void choose(const ConvChoice& choice) override;
  const ConvChoice& choice() const override { return choice_; }
  std::string describe(const ConvChoice& choice) const override;
  std::string signature() const override;
  void settle(Packings& packings) override;

  int64_t tasks() const override { return tiling_.tiles() * int64_t(packed_->parts.size()); }
  void run(int64_t task, const Run& run, const Scratch& scratch) const override;
  ScratchSize scratch() const override;
  std::string kernel() const override {
    return describe(choice_) + (pooled_ ? ", pooled" : "") + (row_fused ? ", rows fused" : "");
  }
  int64_t multiply_adds() const override;

  // In the batch-interleaved layout and a team of one the tasks are rows of tiles, from the top to the bottom. Whether `reader`
  // can take each row of its tiles as soon as this convolution has made what that reads.
  bool can_fuse_rows(const ConvStep& reader) const;
  int64_t tile_rows() const { return tiling_.down(); }
  void run_tile_row(int64_t row, const Run& run, const Scratch& scratch) const;
  int64_t rows_needed(int64_t tile_row, const ConvStep& maker) const;  // of what the maker stores, from the top
  int64_t rows_made(int64_t tile_row) const;  // of what is stored, from the top
  bool row_fused = false;  // with another convolution

 private:
  bool may_have_patterns() const;
  bool may_stay_inside(TileShape s) const;
  bool must_stay_inside() const;
  bool may_transform(TileShape s) const;
  void add_blocks(ConvChoice c, std::vector<ConvChoice>& list) const;
  void bind();
  void pool_tile(const ConvPart& part, const ConvTiling::Place& at, const float* tile, float* arena) const;

  const Op& op_;
  const Storage& in_;
  const Storage& map_;  // of the outputs
  const Storage* const residual_;
  const bool pooled_;
  const Layout& layout_;
  const Kernels& kernels_;
  const int team_;
  const int64_t nonzeros_;  // of all parts but A B, at the most
  std::unique_ptr<SparseMatrix> matrix_;
  AlignedVector<float> folded_;

  ConvTiling tiling_;
  ConvChoice choice_;
  std::shared_ptr<const PackedConv> packed_;
  ConvArgs args_{};
  ConvKernel kernel_ = nullptr;
  const float* second_scale_ = nullptr;
  const float* second_shift_ = nullptr;
};

}  // namespace splore
