#include "phases.h"

#include <algorithm>
#include <cstring>

namespace splore {
namespace {

int64_t floor_divided(int64_t x, int64_t by) { return x >= 0 ? x / by : -((-x + by - 1) / by); }

template <int STRIDE>
void copy_every(const float* in, int64_t stride, int64_t count, float* out) {
  for (int64_t x = 0; x < count; x++) out[x] = in[x * (STRIDE ? STRIDE : stride)];
}

class PhaseStep : public Step {
 public:
  // It fills the borders itself.
  PhaseStep(int index, const Op& op, const Storage& in, const Storage& out)
      : Step(index, nullptr), phases_(op.window), in_(in), out_(out), bits_(op.kind == SPLORE_INT_CONV ? 8 : 32) {}

  int64_t tasks() const override { return in_.shape.c; }
  int bits() const override { return bits_; }
  std::string kernel() const override { return "phases"; }
  void run(int64_t c, const Run& run, const Scratch&) const override { phases_.copy(in_, out_, c, run); }

 private:
  const Phases phases_;
  const Storage& in_;
  const Storage& out_;
  const int bits_;
};

}  // namespace

Phases::Side::Side(int64_t kernel, int64_t stride, int64_t dilation, int64_t before) : stride(stride) {
  for (int64_t tap = 0; tap < kernel; tap++) {
    shift.push_back(floor_divided(tap * dilation - before, stride));
    phase.push_back(tap * dilation - before - shift.back() * stride);
  }
  remainders = phase;
  std::sort(remainders.begin(), remainders.end());
  remainders.erase(std::unique(remainders.begin(), remainders.end()), remainders.end());
  for (int64_t& p : phase) p = std::lower_bound(remainders.begin(), remainders.end(), p) - remainders.begin();
}

Phases::Phases(const Window& w)
    : rows_(w.kernel_h, w.stride_h, w.dilation_h, w.top), columns_(w.kernel_w, w.stride_w, w.dilation_w, w.left) {}

bool Phases::serve(const Window& w, const Shape& in, const Shape& out, const Layout& layout) {
  if (!layout.planar || (w.stride_h == 1 && w.stride_w == 1)) return false;
  const Border reach = Phases(w).border();  // small maps have none
  if (!layout.bordered(out) && (reach.top || reach.left || reach.bottom || reach.right)) return false;
  return out.h == (in.h + w.stride_h - 1) / w.stride_h && out.w == (in.w + w.stride_w - 1) / w.stride_w;
}

Phases::Tap Phases::tap(int64_t row, int64_t column) const {
  const size_t i = size_t(row), j = size_t(column);
  return {rows_.phase[i] * int64_t(columns_.remainders.size()) + columns_.phase[j], rows_.shift[i], columns_.shift[j]};
}

Border Phases::border() const {
  const auto beyond = [](int64_t shift) { return std::max<int64_t>(0, shift); };
  return {beyond(-rows_.shift.front()), beyond(-columns_.shift.front()), beyond(rows_.shift.back()),
          beyond(columns_.shift.back())};
}

void Phases::copy(const Storage& in, const Storage& phases, int64_t c, const Run& run) const {
  float fill;
  std::memcpy(&fill, &phases.fill, sizeof fill);
  float* plane = run.arena + phases.offset + c * count() * phases.plane;
  for (const int64_t top : rows_.remainders)
    for (const int64_t left : columns_.remainders) {
      std::fill_n(plane, phases.plane, fill);
      const int64_t rows = (in.shape.h - top + rows_.stride - 1) / rows_.stride;
      const int64_t columns = (in.shape.w - left + columns_.stride - 1) / columns_.stride;
      for (int image = 0; image < run.images; image++)
        for (int64_t y = 0; y < rows; y++) {
          const float* from = in.pixels(run.arena) + c * in.plane + image * in.image + (y * rows_.stride + top) * in.row + left;
          float* to = plane + phases.first + image * phases.image + y * phases.row;
          columns_.stride == 2 ? copy_every<2>(from, 2, columns, to) : copy_every<0>(from, columns_.stride, columns, to);
        }
      plane += phases.plane;
    }
}

std::unique_ptr<Step> phase_step(int index, const Op& op, const Storage& in, const Storage& out) {
  return std::make_unique<PhaseStep>(index, op, in, out);
}

}  // namespace splore
