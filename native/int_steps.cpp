// Everything in eight bits that is not a convolution. A task is a word of the result, four channels, or a row of the way in.
#include "int_steps.h"

#include <algorithm>

#include "int_conv_step.h"

namespace splore {
namespace {

int64_t words_of(int64_t channels) { return (channels + 3) / 4; }

void fill_words(float* begin, float* end, uint32_t word) {
  for (; begin < end; begin++) std::memcpy(begin, &word, sizeof word);
}

// The nearest byte, half to even.
uint32_t byte_of(float y) {
  const float shifted = std::min(std::max(y, 0.0f), 255.0f) + 12582912.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return bits & 255;
}

uint8_t byte_at(const float* word, int64_t byte) { return reinterpret_cast<const uint8_t*>(word)[byte]; }

class IntMapStep : public Step {
 public:
  IntMapStep(int index, const Op& op, std::vector<IntValue> inputs, int64_t channels, const Layout& layout,
             const IntKernels& kernels, const Storage& out)
      : Step(index, &out), op_(op), inputs_(std::move(inputs)), channels_(channels), layout_(layout), kernels_(kernels) {}

  int64_t tasks() const override { return out->shape.c; }
  int bits() const override { return 8; }
  std::string kernel() const override {
    return op_.kind == SPLORE_LOOKUP ? "int8 table" : op_.kind == SPLORE_CONVERT ? "convert" : "int8 map";
  }
  ScratchSize scratch() const override {
    ScratchSize size;
    if (layout_.planar && op_.kind == SPLORE_MUL) size.gathered = out->vectors * layout_.lanes;
    return size;
  }

  void run(int64_t task, const Run& run, const Scratch& scratch) const override {
    IntMapArgs args{};
    ptrdiff_t rows[5] = {};  // floats between the rows of the sources, and of the other one
    args.out = out->pixels(run.arena) + task * out->plane;
    args.fill = out->fill;
    args.low = 0, args.high = 255;
    if (op_.quant) {
      const IntClamp clamp = int_clamp(op_.act, op_.quant);
      args.low = clamp.low, args.high = clamp.high;
    }
    prepare(task, run, scratch, args, rows);
    const int64_t height = layout_.planar ? 1 : out->shape.h;
    args.vectors = layout_.planar ? out->vectors : out->shape.w;
    if (layout_.planar) args.mask = out->mask;
    for (int64_t y = 0; y < height; y++) {
      kernels_.map(args);
      args.out += out->row;
      for (int j = 0; j < 4; j++)
        if (args.source[j].words) args.source[j].words += rows[j];
      if (args.other.words) args.other.words += rows[4];
    }
  }

 private:
  static const float* plane(const IntValue& value, int64_t word, const Run& run) {
    return value.storage->pixels(run.arena) + word * value.storage->plane;
  }

  void prepare(int64_t task, const Run& run, const Scratch& scratch, IntMapArgs& args, ptrdiff_t* rows) const {
    const IntValue& x = inputs_[0];
    const double to = op_.quant ? double(op_.quant.scale) : 1.0;
    const auto whole = [&] { args.source[0] = {plane(x, task, run), 0, 0.0f, 0.0f}, rows[0] = x.storage->row; };
    switch (op_.kind) {
      case SPLORE_CONVERT:
        if (!op_.quant) {
          args.kind = kIntToFloats;
          args.source[0] = {plane(x, task / 4, run), int32_t(task % 4), x.quant.scale, -float(x.quant.zero)};
          rows[0] = x.storage->row;
          return;
        }
        args.kind = kIntFromFloats;
        for (int64_t c = task * 4; c < std::min(task * 4 + 4, channels_); c++) {
          args.source[c % 4] = {plane(x, c, run), 0, float(1 / to), float(op_.quant.zero)};
          rows[c % 4] = x.storage->row;
        }
        return;
      case SPLORE_LOOKUP:
        args.kind = kIntTable, args.table = op_.table;
        return whole();
      case SPLORE_AFFINE:
      case SPLORE_CONCAT:
        return collect(task, run, args, rows);
      case SPLORE_ADD: {
        const IntValue& other = inputs_[1];
        const double first = double(x.quant.scale) / to, second = double(other.quant.scale) / to;
        args.kind = kIntAdd;
        whole();
        args.source[0].factor = float(first);
        args.source[0].offset = float((op_.quant.zero - first * x.quant.zero) - second * other.quant.zero);
        args.other = {plane(other, task, run), 0, float(second), 0.0f};
        rows[4] = other.storage->row;
        return;
      }
      case SPLORE_MUL: {
        const IntValue& other = inputs_[1];
        args.kind = kIntMul;
        whole();
        args.source[0].offset = -float(x.quant.zero);
        args.other = {plane(other, task, run), 0, 0.0f, -float(other.quant.zero)};
        args.factor = float(double(x.quant.scale) * double(other.quant.scale) / to), args.offset = float(op_.quant.zero);
        args.other_once = !(other.storage->shape == x.storage->shape);
        rows[4] = args.other_once ? 0 : other.storage->row;
        if (args.other_once && layout_.planar) spread(*other.storage, run, scratch, args);
        return;
      }
    }
  }

  // Each channel of the result from one of an input.
  void collect(int64_t task, const Run& run, IntMapArgs& args, ptrdiff_t* rows) const {
    args.kind = kIntCollect;
    for (int64_t c = task * 4; c < std::min(task * 4 + 4, channels_); c++) {
      int64_t from = c;
      size_t input = 0;
      while (from >= inputs_[input].channels) from -= inputs_[input++].channels;
      const IntValue& x = inputs_[input];
      IntSource& source = args.source[c % 4];
      source = {plane(x, from / 4, run), int32_t(from % 4), 1.0f, 0.0f};
      rows[c % 4] = x.storage->row;
      if (op_.kind == SPLORE_AFFINE) {
        const IntLine line = int_line(op_, c, x.quant);
        source.factor = line.factor, source.offset = line.offset;
      } else if (!(x.quant == op_.quant)) {
        const double factor = double(x.quant.scale) / double(op_.quant.scale);
        source.factor = float(factor), source.offset = float(op_.quant.zero - factor * x.quant.zero);
      }
    }
  }

  // In the planar layout each image has its factor: a plane of them.
  void spread(const Storage& other, const Run& run, const Scratch& scratch, IntMapArgs& args) const {
    const float* factors = args.other.words;
    fill_words(scratch.gathered, scratch.gathered + out->vectors * layout_.lanes, 0);
    for (int i = 0; i < run.images; i++)
      for (int64_t y = 0; y < out->shape.h; y++)
        std::fill_n(scratch.gathered + i * out->image + y * out->row, out->shape.w, factors[i * other.image]);
    args.other.words = scratch.gathered, args.other_once = false;
  }

  const Op& op_;
  const std::vector<IntValue> inputs_;
  const int64_t channels_;  // of the result
  const Layout& layout_;
  const IntKernels& kernels_;
};

class IntFlattenStep : public Step {
 public:
  IntFlattenStep(int index, const Layout& layout, const Storage& in, const Storage& out)
      : Step(index, &out), in_(in), layout_(layout) {}

  int64_t tasks() const override { return out->shape.c; }
  int bits() const override { return 8; }
  std::string kernel() const override { return "int8 flatten"; }

  void run(int64_t task, const Run& run, const Scratch&) const override {
    const int64_t pixels = in_.shape.h * in_.shape.w;
    const int count = layout_.planar ? layout_.images : layout_.lanes;
    float* to = out->pixels(run.arena) + task * out->plane;
    if (layout_.planar) fill_words(to, to + out->vectors * layout_.lanes, out->fill);
    for (int i = 0; i < count; i++)
      for (int64_t byte = 0; byte < 4; byte++) {
        const int64_t channel = (task * 4 + byte) / pixels, p = (task * 4 + byte) % pixels;
        if (channel / 4 >= in_.shape.c) break;  // a word's bytes beyond the last channel
        const float* from =
            in_.pixels(run.arena) + channel / 4 * in_.plane + p / in_.shape.w * in_.row + p % in_.shape.w * in_.column;
        reinterpret_cast<uint8_t*>(to + i * out->image)[byte] = byte_at(from + i * in_.image, channel % 4);
      }
  }

 private:
  const Storage& in_;
  const Layout& layout_;
};

class IntInputStep : public Step {
 public:
  IntInputStep(const Shape& shape, const Quant& quant, const Layout& layout, const Kernels& kernels, const Storage& out)
      : Step(-1, &out), shape_(shape), quant_(quant), layout_(layout), kernels_(kernels) {}

  int64_t tasks() const override { return out->shape.c * shape_.h; }
  int bits() const override { return 8; }
  std::string kernel() const override { return "int8 input"; }
  ScratchSize scratch() const override {
    ScratchSize size;
    size.gathered = layout_.planar ? 0 : shape_.w * layout_.lanes;
    return size;
  }

  void run(int64_t task, const Run& run, const Scratch& scratch) const override {
    const int64_t word = task / shape_.h, y = task % shape_.h;
    float* plane = out->pixels(run.arena) + word * out->plane;
    float* to = plane + y * out->row;
    for (int i = 0; i < run.images; i++) {
      const float* in = run.in + i * shape_.elements() + y * shape_.w;
      float* row = layout_.planar ? to + i * out->image : scratch.gathered + i * shape_.w;
      convert(word, in, row);
      if (!layout_.planar) continue;
      // What lies between this row and the next one, or the end.
      const bool last_row = y + 1 == shape_.h, last = last_row && i + 1 == run.images;
      float* end = last ? plane + out->vectors * layout_.lanes : last_row ? plane + (i + 1) * out->image : row + out->row;
      fill_words(row + shape_.w, end, out->fill);
    }
    if (!layout_.planar) kernels_.interleave(scratch.gathered, shape_.w, run.images, to, shape_.w);
  }

 private:
  void convert(int64_t word, const float* in, float* row) const {
    const int64_t pixels = shape_.h * shape_.w, lanes = layout_.lanes;
    IntMapArgs args{};
    args.kind = kIntFromFloats, args.low = 0, args.high = 255, args.vectors = shape_.w / lanes, args.out = row;
    const float factor = float(1 / double(quant_.scale)), offset = float(quant_.zero);
    const int64_t first = word * 4, count = std::min<int64_t>(4, shape_.c - first);
    for (int64_t j = 0; j < count; j++) args.source[j] = {in + (first + j) * pixels, 0, factor, offset};
    kernels_.int8->map(args);
    for (int64_t x = args.vectors * lanes; x < shape_.w; x++) {
      uint32_t bytes = 0;
      for (int64_t j = 0; j < count; j++) bytes |= byte_of(args.source[j].words[x] * factor + offset) << 8 * j;
      fill_words(row + x, row + x + 1, bytes);
    }
  }

  const Shape shape_;
  const Quant quant_;
  const Layout& layout_;
  const Kernels& kernels_;
};

}  // namespace

std::unique_ptr<Step> int_map_step(int index, const Op& op, std::vector<IntValue> inputs, int64_t channels, const Layout& layout,
                                   const IntKernels& kernels, const Storage& out) {
  return std::make_unique<IntMapStep>(index, op, std::move(inputs), channels, layout, kernels, out);
}

std::unique_ptr<Step> int_flatten_step(int index, const Layout& layout, const Storage& in, const Storage& out) {
  return std::make_unique<IntFlattenStep>(index, layout, in, out);
}

std::unique_ptr<Step> int_input_step(const Shape& shape, const Quant& quant, const Layout& layout, const Kernels& kernels,
                                     const Storage& out) {
  return std::make_unique<IntInputStep>(shape, quant, layout, kernels, out);
}

}  // namespace splore
