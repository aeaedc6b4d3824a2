// A convolution in eight bits.
#pragma once

#include "conv_tiling.h"
#include "int_weights.h"
#include "tuned_step.h"

namespace splore {

class IntConvStep : public TunedStep {
 public:
  struct Values {
    const Storage& in;
    const Storage& out;
    const Storage* residual;
    Quant in_quant, residual_quant;
    bool phases;  // that is what `in` holds
  };
  IntConvStep(int index, const Op& op, const Values& values, const Layout& layout, const IntKernels& kernels, int team);
  // Fuses a second output, what the affine operation makes of the result.
  void write_second(const Storage& storage, const Op& affine);

  std::vector<ConvChoice> candidates() const override;
  void choose(const ConvChoice& choice) override;
  const ConvChoice& choice() const override { return choice_; }
  std::string describe(const ConvChoice& choice) const override;
  std::string signature() const override;
  void settle(Packings& packings) override;

  int64_t tasks() const override { return tiling_.tiles() * int64_t(packed_->parts.size()); }
  void run(int64_t task, const Run& run, const Scratch& scratch) const override;
  ScratchSize scratch() const override;
  std::string kernel() const override { return describe(choice_) + (second ? ", second" : ""); }
  int64_t multiply_adds() const override;
  int bits() const override { return 8; }

 private:
  void make_rows();
  void make_channels();
  void add_blocks(ConvChoice c, std::vector<ConvChoice>& list) const;
  void bind();

  const Op& op_;
  const Storage& in_;
  const Storage& map_;
  const Storage* const residual_;
  const Quant in_quant_, residual_quant_;
  const Layout& layout_;
  const IntKernels& kernels_;
  const int team_;
  const Op* affine_ = nullptr;  // of the second output
  IntRows rows_, down_rows_;
  int64_t row_blocks_ = 0, down_blocks_ = 0;
  AlignedVector<IntChannel> channels_, directions_;
  ConvTiling tiling_;
  ConvChoice choice_;
  std::shared_ptr<const PackedIntConv> packed_;
  IntConvArgs args_{};
  IntConvKernel kernel_ = nullptr;
};

// The bytes that an activation lets through.
struct IntClamp {
  float low, high;
};
IntClamp int_clamp(int64_t act, const Quant& quant);

// What an affine operation makes of a byte of channel c: factor byte + offset.
struct IntLine {
  float factor, offset;
};
IntLine int_line(const Op& affine, int64_t c, const Quant& in);

}  // namespace splore
