#include "program_file.h"

#include <algorithm>

#include "sha256.h"

namespace splore {
namespace {

constexpr int64_t kVersion = 1;
const char* const kTypes[] = {"float32", "uint32", "int8", "uint8"};  // in the checksum, as in splore_array
constexpr int64_t kImageBytes = int64_t(1) << 28;

struct Attribute {
  const char* name;
  std::vector<int> words;  // that its whole numbers go to
};

struct Kind {
  int64_t kind;
  std::vector<Attribute> attributes;  // but `name` and `inputs`, which every operation has
  std::vector<std::pair<const char*, int>> arrays;
};

const char* const kActs[] = {"none", "relu", "relu6", "silu", "sigmoid", "hardswish", "hardsigmoid", "gelu"};

const std::map<std::string, Kind>& kinds() {
  const Attribute act{"act", {SPLORE_ACT}}, kernel{"kernel", {SPLORE_KERNEL_H, SPLORE_KERNEL_W}},
      stride{"stride", {SPLORE_STRIDE_H, SPLORE_STRIDE_W}},
      pad{"pad", {SPLORE_PAD_TOP, SPLORE_PAD_LEFT, SPLORE_PAD_BOTTOM, SPLORE_PAD_RIGHT}},
      dilation{"dilation", {SPLORE_DILATION_H, SPLORE_DILATION_W}}, groups{"groups", {SPLORE_GROUPS}},
      mode{"mode", {SPLORE_KIND}}, count_pad{"count_include_pad", {SPLORE_COUNT_PAD}};
  static const std::map<std::string, Kind> all = {
      {"conv",
       {SPLORE_CONV,
        {kernel, stride, pad, dilation, groups, act},
        {{"dense", SPLORE_DENSE},
         {"A", SPLORE_A},
         {"B", SPLORE_B},
         {"values", SPLORE_VALUES},
         {"columns", SPLORE_COLUMNS},
         {"rows", SPLORE_ROWS},
         {"bias", SPLORE_BIAS},
         {"pre.scale", SPLORE_SCALE},
         {"pre.shift", SPLORE_SHIFT}}}},
      {"pool", {SPLORE_MAX_POOL, {mode, kernel, stride, pad, count_pad}, {}}},
      {"add", {SPLORE_ADD, {act}, {}}},
      {"mul", {SPLORE_MUL, {act}, {}}},
      {"activate", {SPLORE_ACTIVATE, {act}, {}}},
      {"affine", {SPLORE_AFFINE, {act}, {{"scale", SPLORE_SCALE}, {"shift", SPLORE_SHIFT}}}},
      {"concat", {SPLORE_CONCAT, {}, {}}},
      {"flatten", {SPLORE_FLATTEN, {}, {}}}};
  return all;
}

void expect_keys(const Json& object, const std::vector<std::string>& keys) {
  expect(object.members().size() == 2 * keys.size(), "an attribute is missing or unknown");
  for (const std::string& key : keys) object.at(key);
}

template <size_t N>
int64_t place_in(const char* const (&names)[N], const std::string& name) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  expect(found != std::end(names), "no such value as " + shown(name));
  return found - std::begin(names);
}

void read(const Attribute& attribute, const Json& value, int64_t* words) {
  const std::string name = attribute.name;
  if (name == "act") {
    words[SPLORE_ACT] = place_in(kActs, value.text());
  } else if (name == "mode") {
    const char* const modes[] = {"max", "avg"};
    words[SPLORE_KIND] = SPLORE_MAX_POOL + place_in(modes, value.text());
  } else if (name == "count_include_pad") {
    words[SPLORE_COUNT_PAD] = value.boolean();
  } else if (attribute.words.size() == 1) {
    words[attribute.words[0]] = value.integer();
  } else {
    const std::vector<Json>& list = value.list();
    expect(list.size() == attribute.words.size(), name + " has another number of sides");
    for (size_t i = 0; i < list.size(); i++) words[attribute.words[i]] = list[i].integer();
  }
}

}  // namespace

ProgramFile::ProgramFile(Container container, int64_t most) : container_(std::move(container)) {
  const std::string* text = container_.text("splore.program");
  expect(text, "it has no 'splore.program' in its metadata; was it written by Engine.save?");
  const Json structure = Json::parse(*text);
  const int64_t version = structure.at("version").integer();
  expect(version >= 1 && version <= kVersion, "expected version " + std::to_string(kVersion) + " or below, found " +
                                                  std::to_string(version) + "; was it written by a newer splore?");
  const std::string* sum = container_.text("splore.checksum");
  expect(sum && *sum == checksum(*text), "the checksum does not match: the file was altered or damaged");
  expect_keys(structure, {"version", "input", "flat_input", "flat_output", "ops"});
  read(structure);
  const Program program = check_program(program_);
  for (const auto& [key, shape] : {std::pair{"flat_input", program.shapes.front()}, {"flat_output", program.shapes.back()}})
    expect(!structure.at(key).boolean() || (shape.h == 1 && shape.w == 1), "a flat input or output must be (C, 1, 1)");
  const double found = image_bytes(program);
  if (most <= 0) most = kImageBytes;
  expect(found <= double(most), "an image takes " + std::to_string(int64_t(found) >> 20) +
                                    " MiB to run, more than the limit of " + std::to_string(most >> 20) + " MiB");
}

std::string ProgramFile::checksum(const std::string& structure) const {
  Sha256 digest;
  digest.add(structure);
  for (const auto& [name, tensor] : container_.tensors()) {
    std::string line = "\n" + name + " " + kTypes[tensor.type] + " (";
    for (size_t i = 0; i < tensor.shape.size(); i++) line += (i ? ", " : "") + std::to_string(tensor.shape[i]);
    digest.add(line + (tensor.shape.size() == 1 ? ",)\n" : ")\n"));
    digest.add({container_.bytes(tensor), size_t(tensor.end - tensor.begin)});
  }
  return digest.hex();
}

void ProgramFile::read(const Json& structure) {
  const std::vector<Json>&input = structure.at("input").list(), &ops = structure.at("ops").list();
  expect(input.size() == 3, "expected an input of 3 whole numbers");
  for (size_t i = 0; i < 3; i++) program_.input[i] = input[i].integer();
  words_.assign(ops.size() * SPLORE_OP_WORDS, 0);
  for (size_t i = 0; i < ops.size(); i++) {
    try {
      read(i, ops[i], words_.data() + i * SPLORE_OP_WORDS);
    } catch (const Error& error) {
      throw Error("operation " + std::to_string(i) + ": " + error.what());
    }
  }
  expect(arrays_.size() == container_.tensors().size(), "it has tensors that no operation uses");
  program_.size = sizeof program_, program_.op_words = SPLORE_OP_WORDS, program_.array_size = sizeof(splore_array);
  program_.op_count = int64_t(ops.size()), program_.ops = words_.data();
  program_.input_count = int64_t(inputs_.size()), program_.inputs = inputs_.data();
  program_.array_count = int64_t(arrays_.size()), program_.arrays = arrays_.data();
}

void ProgramFile::read(size_t index, const Json& op, int64_t* words) {
  const auto found = kinds().find(op.at("op").text());
  expect(found != kinds().end(), "no such operation as " + shown(op.at("op").text()));
  const Kind& kind = found->second;
  std::vector<std::string> keys = {"op", "name", "inputs"};
  for (const Attribute& attribute : kind.attributes) keys.push_back(attribute.name);
  expect_keys(op, keys);
  op.at("name").text();
  std::fill(words + SPLORE_BIAS, words + SPLORE_OP_WORDS, -1);
  words[SPLORE_KIND] = kind.kind;
  words[SPLORE_DILATION_H] = words[SPLORE_DILATION_W] = 1;
  words[SPLORE_INPUTS_BEGIN] = int64_t(inputs_.size());
  for (const Json& value : op.at("inputs").list()) inputs_.push_back(value.integer());
  words[SPLORE_INPUTS_COUNT] = int64_t(inputs_.size()) - words[SPLORE_INPUTS_BEGIN];
  for (const Attribute& attribute : kind.attributes) splore::read(attribute, op.at(attribute.name), words);
  for (const auto& [name, word] : kind.arrays) {
    const bool matrix = word == SPLORE_DENSE || word == SPLORE_A || word == SPLORE_B;
    words[word] = array(std::to_string(index) + "." + name, matrix ? 2 : 1);
  }
  if (kind.kind == SPLORE_CONV) check_shapes(index, words);
}

// The number of an array that is there, with so many dimensions.
int64_t ProgramFile::array(const std::string& name, size_t dimensions) {
  const auto found = container_.tensors().find(name);
  if (found == container_.tensors().end()) return -1;
  const Tensor& tensor = found->second;
  expect(tensor.shape.size() == dimensions, "tensor " + name + " has another number of dimensions");
  arrays_.push_back({container_.bytes(tensor), tensor.count(), tensor.type});
  return int64_t(arrays_.size()) - 1;
}

const std::vector<int64_t>* ProgramFile::shape(size_t index, const char* name) const {
  const auto found = container_.tensors().find(std::to_string(index) + "." + name);
  return found == container_.tensors().end() ? nullptr : &found->second.shape;
}

// The sides of matrices, of which the check of a program sees only the products.
void ProgramFile::check_shapes(size_t index, int64_t* words) const {
  const auto shape = [&](const char* name) { return this->shape(index, name); };
  const auto *bias = shape("bias"), *dense = shape("dense"), *a = shape("A"), *b = shape("B");
  expect(bias, "its tensor 'bias' is missing");
  const int64_t n = words[SPLORE_OUTPUTS] = (*bias)[0];
  expect(!dense || (*dense)[0] == n, "dense must be (n, k)");
  expect(!a == !b, "A and B come together, found only one of them");
  expect(!a || ((*a)[0] == n && (*a)[1] == (*b)[0] && (*b)[0] > 0), "A and B must be (n, r) and (r, k)");
  words[SPLORE_RANK] = a ? (*a)[1] : 0;
  expect(!shape("values") == !shape("columns") && !shape("values") == !shape("rows"), "values, columns and rows come together");
  expect(!shape("pre.scale") == !shape("pre.shift"), "pre.scale and pre.shift come together");
}

}  // namespace splore
