// The check of what runs in eight bits.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "program_check.h"

namespace splore {
namespace {

constexpr int64_t kMostSum = (int64_t(1) << 31) / 255;  // of a row's absolute weights: its sums stay within 32 bits

int64_t absolute_sum(const int8_t* values, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; i++) sum += std::abs(int(values[i]));
  return sum;
}

const float* scales(const Arrays& arrays, int64_t index, int64_t count) {
  const float* found = arrays.floats(index, count);
  expect(std::all_of(found, found + count, [](float x) { return x > 0 && std::isfinite(x); }), "a scale is not positive");
  return found;
}

void check_blocks(const IntWeight& w, const int8_t* blocks) {
  const int64_t words = (w.channels + 3) / 4, z = w.blocks_count;
  expect(w.rows[0] == 0 && w.rows[w.n] == z, "the rows of blocks don't end at the last one");
  for (int64_t i = 0; i < w.n; i++) {
    expect(w.rows[i] <= w.rows[i + 1] && w.rows[i + 1] <= z, "the rows of blocks don't rise");
    for (uint32_t j = w.rows[i]; j < w.rows[i + 1]; j++) {
      expect(w.positions[j] < words * w.taps && (j == w.rows[i] || w.positions[j] > w.positions[j - 1]),
             "the positions of blocks don't rise, or lie outside of the weight");
      for (int64_t c = w.positions[j] / w.taps * 4; c < w.positions[j] / w.taps * 4 + 4; c++)
        expect(c < w.channels || !blocks[int64_t(j) * 4 + c % 4], "a weight lies beyond the last input channel");
    }
  }
}

}  // namespace

IntWeight int_weight_of(const int64_t* word, const Arrays& arrays, const IntWeightSize& size) {
  IntWeight w;
  w.n = size.n, w.channels = size.channels, w.taps = size.taps, w.k = size.channels * size.taps;
  const auto bytes = [&](int field, int64_t count) { return arrays.bytes(word[field], count); };
  w.scale = scales(arrays, word[SPLORE_WEIGHT_SCALE], w.n);
  if (word[SPLORE_DENSE] != -1) w.dense = bytes(SPLORE_DENSE, w.n * w.k);
  w.rank = word[SPLORE_RANK];
  expect(w.rank >= 0 && w.rank <= w.n && w.rank <= w.k, "the rank is out of range");
  expect(size.groups == 1 || (!w.rank && word[SPLORE_VALUES] == -1), "a grouped convolution takes a dense weight only");
  if (w.rank) {
    w.a = bytes(SPLORE_A, w.n * w.rank), w.a_scale = scales(arrays, word[SPLORE_A_SCALE], w.n);
    w.b = bytes(SPLORE_B, w.rank * w.k), w.b_scale = scales(arrays, word[SPLORE_B_SCALE], w.rank);
    w.t_scale = *scales(arrays, word[SPLORE_T_SCALE], 1);
    for (int64_t i = 0; i < w.n; i++) expect(absolute_sum(w.a + i * w.rank, w.rank) <= kMostSum, "a row of A is too large");
    for (int64_t j = 0; j < w.rank; j++) expect(absolute_sum(w.b + j * w.k, w.k) <= kMostSum, "a row of B is too large");
  }
  if (word[SPLORE_VALUES] != -1) {
    const int64_t count = arrays.count(word[SPLORE_VALUES]);
    expect(count >= 0 && count % 4 == 0 && count / 4 <= std::numeric_limits<int32_t>::max(), "there are too many blocks");
    w.blocks_count = count / 4;
    w.blocks = bytes(SPLORE_VALUES, count);
    w.positions = arrays.places(word[SPLORE_COLUMNS], w.blocks_count);
    w.rows = arrays.places(word[SPLORE_ROWS], w.n + 1);
    check_blocks(w, w.blocks);
  }
  expect(w.dense || w.rank || w.rows, "a weight has no part");
  for (int64_t i = 0; i < w.n; i++) {
    int64_t sum = w.dense ? absolute_sum(w.dense + i * w.k, w.k) : 0;
    if (w.rows) sum += absolute_sum(w.blocks + int64_t(w.rows[i]) * 4, (int64_t(w.rows[i + 1]) - w.rows[i]) * 4);
    expect(sum <= kMostSum, "a row of weights is too large");
  }
  return w;
}

void check_quants(Op& op, const int64_t* word, const Arrays& arrays, const Program& program) {
  if (word[SPLORE_QUANT] != -1) {
    const float* found = arrays.floats(word[SPLORE_QUANT], 2);
    expect(found[0] > 1e-30f && found[0] < 1e30f && found[1] >= 0 && found[1] <= 255 && found[1] == std::floor(found[1]),
           "a scale is not positive, or a zero point no byte");
    op.quant = {found[0], int(found[1])};
    expect(op.act == SPLORE_NONE || op.act == SPLORE_RELU || op.act == SPLORE_RELU6, "bytes take no such activation");
  }
  const Quant in = op.inputs.empty() ? Quant{} : program.quant(size_t(op.inputs[0]));
  size_t integer = 0;
  for (int value : op.inputs) integer += bool(program.quant(size_t(value)));
  const bool all = integer == op.inputs.size();
  switch (op.kind) {
    case SPLORE_INT_CONV:
      expect(all && !op.scale, "weights in bytes want inputs in bytes");
      return;
    case SPLORE_CONVERT:
      expect(all != bool(op.quant), "a conversion goes from float32 to bytes, or from bytes to float32");
      return;
    case SPLORE_LOOKUP:
      expect(all && op.quant, "a table maps bytes to bytes");
      op.table = arrays.table(word[SPLORE_TABLE]);
      return;
    case SPLORE_MAX_POOL:
    case SPLORE_FLATTEN:
      expect(op.quant == in, "the result must be stored as the input");
      return;
    case SPLORE_AVG_POOL:
    case SPLORE_ADD:
    case SPLORE_MUL:
    case SPLORE_AFFINE:
    case SPLORE_CONCAT:
      expect(op.quant ? all : !integer, "inputs and result must all be in bytes, or all in float32");
      return;
    default:
      expect(!integer && !op.quant, "this operation runs in float32 alone");
  }
}

}  // namespace splore
