#include "file_operations.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace splore {
namespace {

struct Kind {
  int64_t kind;
  std::vector<const char*> attributes;  // but `name` and `inputs`, which every operation has
  bool may_have_quant = false;
};

const char* const kActs[] = {"none",      "relu", "relu6", "silu", "sigmoid",    "hardswish", "hardsigmoid", "gelu",
                             "gelu_tanh", "tanh", "exp",   "sqrt", "reciprocal", "abs",       "elu",         "mish"};
const char* const kFns[] = {"add", "sub", "mul", "div", "max", "min"};
const char* const kModes[] = {"max", "avg"};

const std::map<std::string, Kind>& kinds() {
  static const std::map<std::string, Kind> all = {
      {"conv", {SPLORE_CONV, {"kernel", "stride", "pad", "dilation", "groups", "act"}}},
      {"int_conv", {SPLORE_INT_CONV, {"kernel", "stride", "pad", "dilation", "groups", "act"}, true}},
      {"pool", {SPLORE_MAX_POOL, {"mode", "kernel", "stride", "pad", "count_include_pad"}, true}},
      {"add", {SPLORE_ADD, {"act"}, true}},
      {"mul", {SPLORE_MUL, {"act"}, true}},
      {"activate", {SPLORE_ACTIVATE, {"act"}}},
      {"affine", {SPLORE_AFFINE, {"act"}, true}},
      {"concat", {SPLORE_CONCAT, {}, true}},
      {"flatten", {SPLORE_FLATTEN, {}, true}},
      {"convert", {SPLORE_CONVERT, {}, true}},
      {"table", {SPLORE_LOOKUP, {}, true}},
      {"reorder", {SPLORE_REORDER, {"channels", "height", "width", "offset"}}},
      {"resample", {SPLORE_RESAMPLE, {}}},
      {"constant", {SPLORE_CONSTANT, {}}},
      {"combine", {SPLORE_COMBINE, {"fn", "act"}}},
      {"leaky", {SPLORE_LEAKY, {}}},
      {"clamp", {SPLORE_CLAMP, {"low", "high"}}},
      {"normalize", {SPLORE_NORM_GROUP, {"groups", "pixelwise", "eps"}}},
      {"softmax", {SPLORE_SOFTMAX, {"groups"}}},
      {"matmul", {SPLORE_MATMUL, {"groups", "transposed", "scale"}}}};
  return all;
}

const std::map<std::string, std::vector<int>>& window_words() {
  static const std::map<std::string, std::vector<int>> all = {
      {"kernel", {SPLORE_KERNEL_H, SPLORE_KERNEL_W}},
      {"stride", {SPLORE_STRIDE_H, SPLORE_STRIDE_W}},
      {"pad", {SPLORE_PAD_TOP, SPLORE_PAD_LEFT, SPLORE_PAD_BOTTOM, SPLORE_PAD_RIGHT}},
      {"dilation", {SPLORE_DILATION_H, SPLORE_DILATION_W}},
      {"groups", {SPLORE_GROUPS}}};
  return all;
}

template <size_t N>
int64_t place_in(const char* const (&names)[N], const Json& value) {
  const auto found = std::find(std::begin(names), std::end(names), value.text());
  expect(found != std::end(names), "no such value as " + shown(value.text()));
  return found - std::begin(names);
}

std::vector<uint32_t> places(const Json& value, size_t count) {
  std::vector<uint32_t> found;
  for (const Json& place : value.list()) found.push_back(uint32_t(place.integer(0, UINT32_MAX)));
  expect(found.size() == count, "expected " + std::to_string(count) + " whole numbers");
  return found;
}

}  // namespace

const Tensor* FileOperations::find(const char* name) const {
  const auto found = container_.tensors().find(std::to_string(index_) + "." + name);
  return found == container_.tensors().end() ? nullptr : &found->second;
}

const std::vector<int64_t>& FileOperations::shape(const char* name) const {
  const Tensor* found = find(name);
  expect(found, "its tensor '" + std::string(name) + "' is missing");
  return found->shape;
}

// The number of an array, or -1.
int64_t FileOperations::tensor(const char* name, size_t dimensions, bool needed) {
  const Tensor* found = find(name);
  if (!found && !needed) return -1;
  expect(shape(name).size() == dimensions, std::string(name) + " has another number of dimensions");
  used_++;
  arrays_.push_back({container_.bytes(*found), found->count(), found->type});
  return int64_t(arrays_.size()) - 1;
}

int64_t FileOperations::own(std::vector<float> values) {
  floats_.push_back(std::move(values));
  arrays_.push_back({floats_.back().data(), int64_t(floats_.back().size()), SPLORE_FLOAT32});
  return int64_t(arrays_.size()) - 1;
}

int64_t FileOperations::own(std::vector<uint32_t> values) {
  places_.push_back(std::move(values));
  arrays_.push_back({places_.back().data(), int64_t(places_.back().size()), SPLORE_UINT32});
  return int64_t(arrays_.size()) - 1;
}

void FileOperations::read(const Json& op) {
  const auto found = kinds().find(op.at("op").text());
  expect(found != kinds().end(), "no such operation as " + shown(op.at("op").text()));
  const Kind& kind = found->second;
  std::vector<std::string> keys = {"op", "name", "inputs"};
  keys.insert(keys.end(), kind.attributes.begin(), kind.attributes.end());
  const Json* quant = kind.may_have_quant ? op.find("quant") : nullptr;
  if (quant) keys.push_back("quant");
  expect_keys(op, keys);
  op.at("name").text();
  index_ = words_.size() / SPLORE_OP_WORDS;
  words_.resize(words_.size() + SPLORE_OP_WORDS, 0);
  words_at_ = words_.data() + index_ * SPLORE_OP_WORDS;
  std::fill(words_at_ + SPLORE_BIAS, words_at_ + SPLORE_OP_WORDS, -1);
  words_at_[SPLORE_KIND] = kind.kind;
  words_at_[SPLORE_DILATION_H] = words_at_[SPLORE_DILATION_W] = kind.kind == SPLORE_MAX_POOL;
  words_at_[SPLORE_INPUTS_BEGIN] = int64_t(inputs_.size());
  for (const Json& value : op.at("inputs").list()) inputs_.push_back(value.integer());
  words_at_[SPLORE_INPUTS_COUNT] = int64_t(inputs_.size()) - words_at_[SPLORE_INPUTS_BEGIN];
  std::vector<float> numbers;
  for (const char* name : kind.attributes) {
    const std::string attribute = name;
    if (attribute == "low" || attribute == "high" || attribute == "eps" || attribute == "scale")
      numbers.push_back(float(op.at(name).real()));
  }
  if (!numbers.empty()) words_at_[SPLORE_VALUES] = own(std::move(numbers));
  for (const char* name : kind.attributes) read_attribute(name, op.at(name));
  if (kind.kind == SPLORE_REORDER) read_factors(op);
  if (quant) {
    const std::vector<Json>& pair = quant->list();
    expect(pair.size() == 2, "quant must be a scale and a zero point");
    const float scale = float(pair[0].real());
    expect(double(scale) == pair[0].real(), "a scale must be a float32");
    words_at_[SPLORE_QUANT] = own(std::vector<float>{scale, float(pair[1].integer(0, 255))});
  }
  read_tensors(kind.kind);
}

void FileOperations::read_attribute(const std::string& name, const Json& value) {
  if (name == "act") {
    words_at_[SPLORE_ACT] = place_in(kActs, value);
  } else if (name == "fn") {
    words_at_[SPLORE_FN] = place_in(kFns, value);
  } else if (name == "mode") {
    words_at_[SPLORE_KIND] = SPLORE_MAX_POOL + place_in(kModes, value);
  } else if (name == "count_include_pad") {
    words_at_[SPLORE_COUNT_PAD] = value.boolean();
  } else if (name == "pixelwise") {
    words_at_[SPLORE_KIND] = value.boolean() ? SPLORE_NORM_PIXEL : SPLORE_NORM_GROUP;
  } else if (name == "transposed") {
    words_at_[SPLORE_KIND] = value.boolean() ? SPLORE_MATMUL_TRANSPOSED : SPLORE_MATMUL;
  } else if (name == "groups") {
    words_at_[SPLORE_GROUPS] = value.integer();
  } else if (const auto sides = window_words().find(name); sides != window_words().end()) {
    const std::vector<Json>& list = value.list();
    expect(list.size() == sides->second.size(), name + " has another number of sides");
    for (size_t i = 0; i < list.size(); i++) words_at_[sides->second[i]] = list[i].integer();
  }
}

// Of a reordering: the offset, the numbers of factors, and the factors.
void FileOperations::read_factors(const Json& op) {
  std::vector<uint32_t> all = places(op.at("offset"), 3), factors;
  for (const char* name : {"channels", "height", "width"}) {
    all.push_back(uint32_t(op.at(name).list().size()));
    for (const Json& factor : op.at(name).list())
      for (const uint32_t place : places(factor, 3)) factors.push_back(place);
  }
  all.insert(all.end(), factors.begin(), factors.end());
  words_at_[SPLORE_COLUMNS] = own(std::move(all));
}

void FileOperations::read_tensors(int64_t kind) {
  const auto take = [&](int word, const char* name, size_t dimensions) { words_at_[word] = tensor(name, dimensions, true); };
  if (kind == SPLORE_CONV || kind == SPLORE_INT_CONV) {
    read_weight(kind == SPLORE_INT_CONV);
  } else if (kind == SPLORE_AFFINE || kind == SPLORE_NORM_GROUP) {
    take(SPLORE_SCALE, "scale", 1), take(SPLORE_SHIFT, "shift", 1);
  } else if (kind == SPLORE_LEAKY) {
    take(SPLORE_SCALE, "slope", 1);
  } else if (kind == SPLORE_LOOKUP) {
    take(SPLORE_TABLE, "table", 1);
  } else if (kind == SPLORE_RESAMPLE) {
    read_resample();
  } else if (kind == SPLORE_CONSTANT) {
    take(SPLORE_VALUES, "data", 3);
    const std::vector<int64_t>& sides = shape("data");
    words_at_[SPLORE_OUTPUTS] = sides[0], words_at_[SPLORE_SIZE_H] = sides[1], words_at_[SPLORE_SIZE_W] = sides[2];
  }
}

// The check of a program sees only how many elements a matrix has: its sides are looked at here.
void FileOperations::read_weight(bool in_bytes) {
  const auto may_take = [&](int word, const char* name, size_t dimensions) { words_at_[word] = tensor(name, dimensions, false); };
  words_at_[SPLORE_BIAS] = tensor("bias", 1, true);
  const int64_t n = words_at_[SPLORE_OUTPUTS] = shape("bias")[0];
  may_take(SPLORE_DENSE, "dense", 2), may_take(SPLORE_A, "A", 2), may_take(SPLORE_B, "B", 2), may_take(SPLORE_ROWS, "rows", 1);
  expect(!find("dense") || shape("dense")[0] == n, "dense must be (n, k)");
  expect(!find("A") == !find("B"), "A and B come together, found only one of them");
  if (find("A")) {
    words_at_[SPLORE_RANK] = shape("A")[1];
    expect(shape("A")[0] == n && shape("A")[1] == shape("B")[0] && shape("B")[0] > 0, "A and B must be (n, r) and (r, k)");
  }
  if (in_bytes) {
    words_at_[SPLORE_WEIGHT_SCALE] = tensor("scale", 1, true);
    may_take(SPLORE_VALUES, "blocks", 2), may_take(SPLORE_A_SCALE, "A_scale", 1);
    may_take(SPLORE_B_SCALE, "B_scale", 1), may_take(SPLORE_T_SCALE, "t_scale", 1);
    expect(!find("blocks") || shape("blocks")[1] == 4, "blocks must be (z, 4)");
    for (const char* name : {"A_scale", "B_scale", "t_scale"})
      expect(!find("A") == !find(name), "A, B and their scales come together");
    if (find("gaps")) read_positions();
  } else {
    may_take(SPLORE_VALUES, "values", 1), may_take(SPLORE_COLUMNS, "columns", 1);
    may_take(SPLORE_SCALE, "pre.scale", 1), may_take(SPLORE_SHIFT, "pre.shift", 1);
    expect(!find("pre.scale") == !find("pre.shift"), "pre.scale and pre.shift come together");
  }
  const bool rows = words_at_[SPLORE_ROWS] != -1;
  expect(rows == (words_at_[SPLORE_VALUES] != -1) && rows == (words_at_[SPLORE_COLUMNS] != -1),
         "the parts of a sparse weight come together, found only some of them");
}

// Of blocks: how many are passed over since the one before in the row, 255 going on.
void FileOperations::read_positions() {
  const Tensor &gaps = *find("gaps"), *rows = find("rows");
  expect(rows && rows->type == SPLORE_UINT32 && gaps.type == SPLORE_UINT8, "gaps must be bytes, and have rows");
  expect(gaps.shape.size() == 1, "gaps has another number of dimensions");
  used_++;
  const auto* code = reinterpret_cast<const unsigned char*>(container_.bytes(gaps));
  std::vector<uint32_t> positions;
  int64_t row = 0, place = -1;
  for (int64_t i = 0; i < gaps.count(); i++) {
    uint32_t begin = 0;
    while (row < rows->count()) {  // a row begins anew; some are empty
      std::memcpy(&begin, container_.bytes(*rows) + 4 * row, 4);
      if (begin != positions.size() || (i && code[i - 1] == 255)) break;
      place = -1, row++;
    }
    place += code[i] + (code[i] < 255);
    expect(place <= INT64_C(0xFFFFFFFF), "a position in gaps is too large");
    if (code[i] < 255) positions.push_back(uint32_t(place));
  }
  expect(!gaps.count() || code[gaps.count() - 1] < 255, "gaps must end at a position");
  words_at_[SPLORE_COLUMNS] = own(std::move(positions));
}

void FileOperations::read_resample() {
  std::vector<uint32_t> index;
  std::vector<float> weight;
  const auto add = [&](const char* name, auto& list, int64_t type) {
    const Tensor* found = find(name);
    expect(shape(name).size() == 2 && found->type == type, std::string(name) + " must be a matrix of indices or weights");
    const size_t before = list.size();
    list.resize(before + size_t(found->count()));
    if (found->count()) std::memcpy(list.data() + before, container_.bytes(*found), size_t(found->count()) * 4);
    used_++;
  };
  add("row_index", index, SPLORE_UINT32), add("column_index", index, SPLORE_UINT32);
  add("row_weight", weight, SPLORE_FLOAT32), add("column_weight", weight, SPLORE_FLOAT32);
  expect(shape("row_index") == shape("row_weight") && shape("column_index") == shape("column_weight"), "each index has a weight");
  words_at_[SPLORE_SIZE_H] = shape("row_index")[0], words_at_[SPLORE_KERNEL_H] = shape("row_index")[1];
  words_at_[SPLORE_SIZE_W] = shape("column_index")[0], words_at_[SPLORE_KERNEL_W] = shape("column_index")[1];
  words_at_[SPLORE_COLUMNS] = own(std::move(index)), words_at_[SPLORE_VALUES] = own(std::move(weight));
}

splore_program FileOperations::program(const Json& input) const {
  expect(used_ == container_.tensors().size(), "it has tensors that no operation uses");
  expect(input.list().size() == 3, "expected an input of 3 whole numbers");
  splore_program raw{};
  raw.size = sizeof raw, raw.op_words = SPLORE_OP_WORDS, raw.array_size = sizeof(splore_array);
  for (size_t i = 0; i < 3; i++) raw.input[i] = input.list()[i].integer();
  raw.op_count = int64_t(words_.size()) / SPLORE_OP_WORDS, raw.ops = words_.data();
  raw.input_count = int64_t(inputs_.size()), raw.inputs = inputs_.data();
  raw.array_count = int64_t(arrays_.size()), raw.arrays = arrays_.data();
  return raw;
}

}  // namespace splore
