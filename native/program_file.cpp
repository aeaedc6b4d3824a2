#include "program_file.h"

#include "sha256.h"

namespace splore {
namespace {

constexpr int64_t kVersion = 1;
const char* const kTypes[] = {"float32", "uint32", "int8", "uint8"};  // in the checksum, as in splore_array
constexpr int64_t kImageBytes = int64_t(1) << 28;
constexpr size_t kMaxDims = 8;  // of an image as the caller gives it

// What the caller gives or gets for an image, in any dimensions, has the numbers of the value.
void check_dims(const Json& dims, const Shape& shape) {
  expect(dims.list().size() <= kMaxDims, "an image has too many dimensions");
  if (dims.list().empty()) return;
  int64_t elements = 1;
  for (const Json& dim : dims.list()) {
    elements *= dim.integer(1, kMaxElements);
    expect(elements <= kMaxElements, "an image has too many elements");
  }
  expect(elements == shape.elements(), "the dimensions of an image must have the numbers of its value");
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
  std::vector<std::string> keys = {"version", "input", "flat_input", "flat_output", "ops"};
  for (const char* key : {"input_dims", "output_dims"})
    if (structure.find(key)) keys.push_back(key);
  expect_keys(structure, keys);
  const std::vector<Json>& ops = structure.at("ops").list();
  for (size_t i = 0; i < ops.size(); i++) {
    try {
      operations_.read(ops[i]);
    } catch (const Error& error) {
      throw Error("operation " + std::to_string(i) + ": " + error.what());
    }
  }
  program_ = operations_.program(structure.at("input"));
  const Program program = check_program(program_);
  for (const auto& [key, shape] : {std::pair{"flat_input", program.shapes.front()}, {"flat_output", program.shapes.back()}})
    expect(!structure.at(key).boolean() || (shape.h == 1 && shape.w == 1), "a flat input or output must be (C, 1, 1)");
  for (const auto& [key, shape] : {std::pair{"input_dims", program.shapes.front()}, {"output_dims", program.shapes.back()}})
    if (const Json* dims = structure.find(key)) check_dims(*dims, shape);
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

}  // namespace splore
