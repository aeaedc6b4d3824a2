// A step of a slice: one operation on the values in an arena, cut into tasks that any worker may take.
#pragma once

#include <memory>
#include <string>

#include "kernels.h"
#include "layout.h"
#include "program.h"

namespace splore {

// One run of one slice: its memory, and the caller's images.
struct Run {
  float* arena;
  const float* in;
  float* out;
  int images;
};

struct ScratchSize {  // floats
  ptrdiff_t gathered = 0, partial = 0, t = 0, outputs = 0;
  void include(const ScratchSize& other);
  ptrdiff_t total() const { return gathered + partial + t + outputs; }
};

class Step {
 public:
  Step(int op, const Storage* out) : op(op), out(out) {}
  virtual ~Step() = default;

  virtual int64_t tasks() const = 0;
  virtual void run(int64_t task, const Run& run, const Scratch& scratch) const = 0;
  virtual ScratchSize scratch() const { return {}; }
  virtual std::string kernel() const = 0;
  virtual int64_t multiply_adds() const { return 0; }  // of one image
  virtual int bits() const { return 32; }              // of what it computes with

  // Zeros around worker's share of the channels of what the step writes; done by every worker during the step.
  void clear_borders(float* arena, int worker, int team) const;

  const int op;              // of the program, -1 for the way in, -2 for the way out
  const Storage* const out;  // null for the way out
  const Storage* second = nullptr;  // the fused second output of a convolution, relu(scale y + shift)
  double milliseconds = 0;
};

std::unique_ptr<Step> input_step(const Layout& layout, const Kernels& kernels, const Storage& out);
std::unique_ptr<Step> output_step(const Layout& layout, const Kernels& kernels, const Storage& in);
std::unique_ptr<Step> pool_step(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& in,
                                const Storage& out);
std::unique_ptr<Step> flatten_step(int index, const Layout& layout, const Kernels& kernels, const Storage& in,
                                   const Storage& out);

// Of an operation on tensors, SPLORE_REORDER or a later kind: its inputs, null where it has none, and its output.
struct TensorValues {
  const Storage* x;
  const Storage* other;
  const Storage* out;
};
std::unique_ptr<Step> tensor_step(int index, const Op& op, const Layout& layout, const Kernels& kernels,
                                  const TensorValues& values);
// Of these, a normalisation or a softmax.
std::unique_ptr<Step> reduce_step(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& in,
                                  const Storage& out);

// act(f(a, b)): see MapKind. A value may be written to channels from `channel` on of a larger one, for concat. `b` counts for
// every channel of a where it has one, and for every pixel where it has one.
struct MapRequest {
  MapKind kind;
  int64_t act;
  const Storage* a;
  const Storage* b = nullptr;
  const float* scale = nullptr;
  const float* shift = nullptr;
  int64_t channel = 0;
  const float* limits = nullptr;  // of kMapClamp
};
std::unique_ptr<Step> map_step(int index, const MapRequest& request, const Layout& layout, const Kernels& kernels,
                               const Storage& out);

}  // namespace splore
