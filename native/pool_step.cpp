// Maximum and average pools. A task is a channel. Windows are cut at the edges of the map: no border is read.
#include <limits>
#include <utility>
#include <vector>

#include "pool_span.h"
#include "step.h"

namespace splore {
namespace {

class PoolStep : public Step {
 public:
  PoolStep(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& in, const Storage& out)
      : Step(index, &out),
        op_(op),
        in_(in),
        layout_(layout),
        kernels_(kernels),
        window_(op.window),
        map_(in.shape),
        result_(out.shape) {
    if (map_.w == 1 && result_.w == 1 && in.row == in.column && out.row == out.column) lay_down();
    for (int64_t x = 0; layout.planar && x < result_.w; x++) {
      const Span cut = columns(x);
      scales_.push_back(1.0f / float(op.count_pad ? cut.padded : cut.size()));
    }
  }

  int64_t tasks() const override { return map_.c; }
  std::string kernel() const override { return "pool"; }

  ScratchSize scratch() const override {
    ScratchSize size;
    if (layout_.planar) size.gathered = line_floats();
    return size;
  }

  void run(int64_t c, const Run& run, const Scratch& scratch) const override {
    const float* from = in_.pixels(run.arena) + c * in_.plane;
    float* to = out->pixels(run.arena) + c * out->plane;
    if (layout_.planar) {
      std::fill(to, to + out->vectors * layout_.lanes, 0.0f);
      if (halves(op_, in_.shape)) return halve(from, to, run.images);
      const float nothing = op_.kind == SPLORE_MAX_POOL ? -std::numeric_limits<float>::infinity() : 0.0f;
      std::fill(scratch.gathered, scratch.gathered + line_floats(), nothing);
    }
    const Window& w = window_;
    for (int64_t y = 0; y < result_.h; y++) {
      const Span rows = span(y, w.stride_h, w.kernel_h, w.top, map_.h, w.bottom);
      if (!layout_.planar)
        images_row(rows, from, to + y * out->row);
      else
        for (int i = 0; i < run.images; i++)
          pixels_row(rows, from + i * in_.image, to + i * out->image + y * out->row, scratch.gathered);
    }
  }

 private:
  // A map of one column is a row in memory, and a row goes in one pass.
  void lay_down() {
    for (Shape* shape : {&map_, &result_}) std::swap(shape->h, shape->w);
    std::swap(window_.kernel_h, window_.kernel_w), std::swap(window_.stride_h, window_.stride_w);
    std::swap(window_.top, window_.left), std::swap(window_.bottom, window_.right);
  }

  Span columns(int64_t x) const {
    const Window& w = window_;
    return span(x, w.stride_w, w.kernel_w, w.left, map_.w, w.right);
  }
  float scale(const Span& rows, const Span& columns) const {
    return 1.0f / float(op_.count_pad ? rows.padded * columns.padded : rows.size() * columns.size());
  }

  void images_row(const Span& rows, const float* from, float* to) const {
    const Window& w = window_;
    for (int64_t x = 0; x < result_.w;) {
      const Span first = columns(x);
      // Windows that lie wholly on the map go in one call.
      int64_t same = 1;
      if (first.size() == w.kernel_w)
        while (x + same < result_.w && columns(x + same).size() == w.kernel_w) same++;
      PoolArgs args{};
      args.max = op_.kind == SPLORE_MAX_POOL;
      args.x = from + rows.begin * in_.row + first.begin * in_.column;
      args.row = in_.row, args.step = w.stride_w * in_.column;
      args.kernel_h = int32_t(rows.size()), args.kernel_w = int32_t(first.size());
      args.rows_ahead = in_.stays_in_cache() ? 0 : int32_t(w.stride_h);
      args.out = to + x * out->column;
      args.outputs = int32_t(same);
      args.scale = scale(rows, first);
      kernels_.pool(args);
      x += same;
    }
  }

  void halve(const float* from, float* to, int images) const {
    HalveArgs args{};
    args.channels = 1, args.rows = result_.h, args.columns = result_.w;
    args.row = in_.row, args.out_row = out->row;
    for (int i = 0; i < images; i++) {
      args.x = from + i * in_.image, args.out = to + i * out->image;
      kernels_.halve_planar(args);
    }
  }

  ptrdiff_t line_floats() const {
    const Window& w = window_;
    return std::max(w.left + map_.w, (result_.w - 1) * w.stride_w + w.kernel_w);
  }

  void pixels_row(const Span& rows, const float* from, float* to, float* line) const {
    const Window& w = window_;
    PoolRowArgs args{};
    args.max = op_.kind == SPLORE_MAX_POOL;
    args.x = from + rows.begin * in_.row;
    args.row = in_.row, args.rows = rows.size();
    args.line = line, args.before = w.left;
    args.width = std::min(map_.w, line_floats() - w.left);
    args.kernel = w.kernel_w, args.stride = w.stride_w, args.outputs = result_.w;
    args.out = to;
    args.scale = scales_.data();
    args.row_scale = 1.0f / float(op_.count_pad ? rows.padded : rows.size());
    kernels_.pool_row(args);
  }

  const Op& op_;
  const Storage& in_;
  const Layout& layout_;
  const Kernels& kernels_;
  Window window_;
  Shape map_, result_;
  std::vector<float> scales_;
};

}  // namespace

std::unique_ptr<Step> pool_step(int index, const Op& op, const Layout& layout, const Kernels& kernels, const Storage& in,
                                const Storage& out) {
  return std::make_unique<PoolStep>(index, op, layout, kernels, in, out);
}

}  // namespace splore
