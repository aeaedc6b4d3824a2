#include <algorithm>
#include <limits>
#include <map>

#include "program_check.h"

namespace splore {
namespace {

class Checker {
 public:
  explicit Checker(const splore_program& raw) : raw_(raw), arrays_(raw) {}

  Program check() {
    expect(raw_.size == sizeof raw_ && raw_.op_words == SPLORE_OP_WORDS && raw_.array_size == sizeof(splore_array),
           "the program was made for another version of splore.h, or does not say its sizes");
    expect(raw_.op_count >= 1 && raw_.op_count <= kMaxOps && raw_.ops, "a program needs 1 to 16384 operations");
    expect(raw_.input_count >= 0 && (raw_.input_count == 0 || raw_.inputs), "the list of inputs is missing");
    expect(raw_.array_count >= 0 && (raw_.array_count == 0 || raw_.arrays), "the list of arrays is missing");
    program_.shapes.push_back(sized({raw_.input[0], raw_.input[1], raw_.input[2]}));
    for (int64_t i = 0; i < raw_.op_count; i++) {
      try {
        add(raw_.ops + i * SPLORE_OP_WORDS, i);
      } catch (const Error& error) {
        throw Error("operation " + std::to_string(i) + ": " + error.what());
      }
    }
    expect(!program_.quant(program_.ops.size()), "the output must be in float32");
    return std::move(program_);
  }

 private:
  const float* floats(int64_t index, int64_t count) const { return arrays_.floats(index, count); }

  void add(const int64_t* word, int64_t index) {
    Op op;
    op.kind = word[SPLORE_KIND];
    op.act = word[SPLORE_ACT];
    expect(op.act >= SPLORE_NONE && op.act <= SPLORE_MISH, "no such activation");
    const int64_t begin = word[SPLORE_INPUTS_BEGIN], count = word[SPLORE_INPUTS_COUNT];
    expect(begin >= 0 && count >= (op.kind == SPLORE_CONSTANT ? 0 : 1) && begin <= raw_.input_count &&
               count <= raw_.input_count - begin,
           "its inputs lie outside of the list of inputs");
    for (int64_t i = 0; i < count; i++) {
      const int64_t value = raw_.inputs[begin + i];
      expect(value >= 0 && value <= index, "an input is not made before");
      op.inputs.push_back(int(value));
    }
    const Shape out = sized(shape_of(op, word));
    check_quants(op, word, arrays_, program_);
    program_.shapes.push_back(out);
    program_.ops.push_back(std::move(op));
  }

  Shape shape_of(Op& op, const int64_t* word) {
    if (op.kind >= SPLORE_REORDER && op.kind <= SPLORE_MATMUL_TRANSPOSED) {
      std::vector<Shape> inputs;
      for (int value : op.inputs) inputs.push_back(program_.shapes[size_t(value)]);
      return check_tensor_op(op, word, inputs, arrays_);
    }
    const Shape x = program_.shapes[size_t(op.inputs[0])];
    const auto count = op.inputs.size();
    switch (op.kind) {
      case SPLORE_CONV:
      case SPLORE_INT_CONV:
        expect(count <= 2, "a convolution has one or two inputs");
        return convolution(op, word, x);
      case SPLORE_MAX_POOL:
      case SPLORE_AVG_POOL: {
        expect(count == 1, "a pool has one input");
        const Shape out = slide(op, word, x);
        const Window& w = op.window;
        expect(w.dilation_h == 1 && w.dilation_w == 1, "a pool has no dilation");
        expect(w.top < w.kernel_h && w.bottom < w.kernel_h && w.left < w.kernel_w && w.right < w.kernel_w,
               "a pad must be smaller than the window");
        op.count_pad = word[SPLORE_COUNT_PAD] != 0;
        return out;
      }
      case SPLORE_ADD:
        expect(count == 2 && second(op) == x, "an addition needs two values of one shape");
        return x;
      case SPLORE_MUL:
        expect(count == 2 && (second(op) == x || second(op) == Shape{x.c, 1, 1}),
               "a product needs a second value of the first one's shape, or one number for each channel");
        return x;
      case SPLORE_ACTIVATE:
        expect(count == 1, "an activation has one input");
        return x;
      case SPLORE_CONVERT:
      case SPLORE_LOOKUP:
        expect(count == 1, "a conversion has one input");
        return x;
      case SPLORE_AFFINE:
        expect(count == 1, "an affine operation has one input");
        op.scale = floats(word[SPLORE_SCALE], x.c);
        op.shift = floats(word[SPLORE_SHIFT], x.c);
        return x;
      case SPLORE_CONCAT: {
        Shape out = x;
        out.c = 0;
        for (int value : op.inputs) {
          const Shape s = program_.shapes[size_t(value)];
          expect(s.h == x.h && s.w == x.w, "what is concatenated has several heights or widths");
          out.c += s.c;
          expect(out.c <= kMaxElements, "a value has too many elements");
        }
        return out;
      }
      case SPLORE_FLATTEN:
        expect(count == 1, "flatten has one input");
        return {x.elements(), 1, 1};
      default:
        throw Error("no such kind of operation");
    }
  }

  Shape second(const Op& op) const { return program_.shapes[size_t(op.inputs[1])]; }

  Shape slide(Op& op, const int64_t* word, const Shape& x) {
    Window& w = op.window;
    w = {word[SPLORE_KERNEL_H],   word[SPLORE_KERNEL_W],  word[SPLORE_STRIDE_H],   word[SPLORE_STRIDE_W],
         word[SPLORE_PAD_TOP],    word[SPLORE_PAD_LEFT],  word[SPLORE_PAD_BOTTOM], word[SPLORE_PAD_RIGHT],
         word[SPLORE_DILATION_H], word[SPLORE_DILATION_W]};
    for (int64_t v : {w.kernel_h, w.kernel_w, w.stride_h, w.stride_w, w.dilation_h, w.dilation_w})
      expect(v >= 1 && v <= kMaxAttribute, "a kernel side, a stride or a dilation is out of range");
    for (int64_t v : {w.top, w.left, w.bottom, w.right}) expect(v >= 0 && v <= kMaxAttribute, "a pad is out of range");
    const Shape padded = sized({x.c, x.h + w.top + w.bottom, x.w + w.left + w.right});
    const int64_t reach_h = w.dilation_h * (w.kernel_h - 1) + 1, reach_w = w.dilation_w * (w.kernel_w - 1) + 1;
    expect(reach_h <= padded.h && reach_w <= padded.w, "the window is larger than the padded input");
    return {x.c, (padded.h - reach_h) / w.stride_h + 1, (padded.w - reach_w) / w.stride_w + 1};
  }

  Shape convolution(Op& op, const int64_t* word, const Shape& x) {
    const Shape slid = slide(op, word, x);
    const int64_t n = word[SPLORE_OUTPUTS], groups = word[SPLORE_GROUPS], rank = word[SPLORE_RANK];
    const Shape out = sized({n, slid.h, slid.w});
    expect(groups >= 1 && x.c % groups == 0 && n % groups == 0, "the groups don't divide the channels");
    op.groups = groups;
    op.bias = floats(word[SPLORE_BIAS], n);
    if (op.inputs.size() == 2) expect(second(op) == out, "the residual has another shape than the output");
    if (word[SPLORE_SCALE] != -1) {
      op.scale = floats(word[SPLORE_SCALE], x.c);
      op.shift = floats(word[SPLORE_SHIFT], x.c);
    }
    if (op.kind == SPLORE_INT_CONV) {
      op.int_weight = int_weight_of(word, arrays_, {n, x.c / groups, op.window.taps(), groups});
      return out;
    }
    Weight& weight = op.weight;
    weight.n = n;
    // The window fits into the padded input, of at most 2^28 elements a value: k does not overflow.
    weight.k = x.c / groups * op.window.taps();
    if (word[SPLORE_DENSE] != -1) weight.dense = floats(word[SPLORE_DENSE], n * weight.k);
    expect(rank >= 0 && rank <= n && rank <= weight.k, "the rank is out of range");
    if (rank > 0) {
      expect(groups == 1, "a grouped convolution takes a dense weight only");
      weight.rank = rank;
      weight.a = floats(word[SPLORE_A], n * rank);
      weight.b = floats(word[SPLORE_B], rank * weight.k);
    }
    if (word[SPLORE_VALUES] != -1) {
      expect(groups == 1, "a grouped convolution takes a dense weight only");
      sparse(weight, word);
    }
    expect(weight.dense || weight.rank || weight.rows, "a weight has no part");
    return out;
  }

  void sparse(Weight& weight, const int64_t* word) {
    const int64_t at = word[SPLORE_VALUES];
    const int64_t z = arrays_.count(at);
    expect(z >= 0 && z <= std::numeric_limits<int32_t>::max(), "a sparse part has too many entries");
    weight.nonzeros = z;
    weight.values = floats(at, z);
    weight.columns = arrays_.places(word[SPLORE_COLUMNS], z);
    weight.rows = arrays_.places(word[SPLORE_ROWS], weight.n + 1);
    expect(weight.rows[0] == 0 && weight.rows[weight.n] == z, "the rows of a sparse part don't end at its entries");
    for (int64_t i = 0; i < weight.n; i++) {
      const uint32_t begin = weight.rows[i], end = weight.rows[i + 1];
      expect(begin <= end && end <= z, "the rows of a sparse part don't rise");
      for (uint32_t j = begin; j < end; j++)
        expect(weight.columns[j] < weight.k && (j == begin || weight.columns[j] > weight.columns[j - 1]),
               "the columns of a sparse part don't rise, or lie outside of the weight");
    }
  }

  const splore_program& raw_;
  const Arrays arrays_;
  Program program_;
};

}  // namespace

Program check_program(const splore_program& program) { return Checker(program).check(); }

double image_bytes(const Program& program) {
  constexpr double kTile = 256;  // floats of the largest tile
  const auto& shapes = program.shapes;
  const size_t last = program.ops.size();
  std::vector<size_t> dies(shapes.size());
  std::map<std::pair<int64_t, int64_t>, Window> pads;
  for (size_t i = 1; i < last; i++) dies[i] = i - 1;  // where nobody reads it
  for (size_t i = 0; i < last; i++) {
    const Op& op = program.ops[i];
    for (int value : op.inputs) dies[size_t(value)] = i;
    if (op.kind != SPLORE_CONV && op.kind != SPLORE_INT_CONV) continue;
    const auto pad = [&](const Shape& shape) {
      Window& all = pads[{shape.h, shape.w}];
      all.top = std::max(all.top, op.window.top), all.left = std::max(all.left, op.window.left);
      all.bottom = std::max(all.bottom, op.window.bottom), all.right = std::max(all.right, op.window.right);
    };
    pad(shapes[size_t(op.inputs[0])]);
    if (op.window.strides() > 1) pad(shapes[i + 1]);
  }
  dies[last] = last;
  std::vector<double> ends(last + 1), sizes;
  for (const Shape& s : shapes) {
    const Window& w = pads[{s.h, s.w}];
    sizes.push_back(double(s.c) * double(s.h + w.top + w.bottom) * double(s.w + w.left + w.right));
    ends[dies[sizes.size() - 1]] += sizes.back();
  }
  double alive = sizes[0], most = alive, table = 0;
  for (size_t i = 0; i < last; i++) {
    alive += sizes[i + 1];
    most = std::max(most, alive);
    alive -= ends[i];
    const Op& op = program.ops[i];
    const Shape& made = shapes[i + 1];
    if (op.kind == SPLORE_REORDER) table = std::max(table, 2 * double(made.c + made.h + made.w));
    if (op.kind != SPLORE_CONV && op.kind != SPLORE_INT_CONV) continue;
    const Shape &in = shapes[size_t(op.inputs[0])], &out = shapes[i + 1];
    const Window& w = op.window;
    double found = double(w.taps()) * (double(in.c) + double(out.h * out.w) + kTile);
    if (w.strides() > 1)  // the phases of its input
      found += double(std::min(w.taps(), w.strides())) * double(in.c) * double(out.h + w.top + w.bottom) *
               double(out.w + w.left + w.right);
    table = std::max(table, found);
  }
  return 4 * (most + table);
}

}  // namespace splore
