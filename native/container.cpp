#include "container.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a program file is little-endian, and its arrays are read where they lie"
#endif

namespace splore {
namespace {

const char* const kTypes[] = {"F32", "U32", "I8", "U8"};  // as in splore_array
constexpr uint64_t kMostHeader = 100000000;  // bytes, as in safetensors

class Descriptor {
 public:
  explicit Descriptor(const char* path) : number_(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;

  uint64_t size() const {
    struct stat found;
    expect(number_ >= 0 && !::fstat(number_, &found), std::strerror(errno));
    expect(S_ISREG(found.st_mode), "it is no file");
    return uint64_t(found.st_size);
  }
  void take(void* to, size_t bytes) const {
    for (char* at = static_cast<char*>(to); bytes;) {
      const ssize_t got = ::read(number_, at, std::min(bytes, size_t(1) << 30));
      if (got < 0 && errno == EINTR) continue;
      expect(got > 0, got < 0 ? std::strerror(errno) : "it became shorter");
      at += got, bytes -= size_t(got);
    }
  }

 private:
  const int number_;
};

}  // namespace

void expect(bool right, const std::string& what) {
  if (!right) throw Error(what);
}

int64_t Tensor::count() const {
  int64_t count = 1;
  for (const int64_t side : shape) count *= side;
  return count;
}

void expect_keys(const Json& object, const std::vector<std::string>& keys) {
  expect(object.members().size() == 2 * keys.size(), "an attribute is missing or unknown");
  for (const std::string& key : keys) object.at(key);
}

std::string shown(const std::string& text) { return "'" + text.substr(0, 80) + "'"; }

// take(to, n) copies the next n bytes of a file of `size` bytes.
template <class Take>
Container Container::parse(uint64_t size, Take take) {
  unsigned char head[8];
  expect(size >= sizeof head, "it is not whole");
  take(head, sizeof head);
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | head[i];
  expect(length <= std::min(kMostHeader, size - sizeof head), "it is no safetensors file, or not whole");
  std::string header(size_t(length), '\0');
  take(header.data(), header.size());
  const uint64_t rest = size - sizeof head - length;
  Container found;
  found.header_ = Json::parse(header);
  found.data_.resize(size_t(rest));
  take(found.data_.data(), size_t(rest));
  found.find_tensors();
  return found;
}

Container Container::open(const char* path) {
  const Descriptor descriptor(path);
  return parse(descriptor.size(), [&](void* to, size_t n) { descriptor.take(to, n); });
}

Container Container::read(const void* bytes, size_t size) {
  const char* at = static_cast<const char*>(bytes);
  return parse(size, [&](void* to, size_t n) {
    if (n) std::memcpy(to, at, n);
    at += n;
  });
}

const std::string* Container::text(std::string_view name) const {
  const Json* metadata = header_.find("__metadata__");
  const Json* found = metadata ? metadata->find(name) : nullptr;
  return found ? &found->text() : nullptr;
}

// All tensors, which together are the data, without gaps.
void Container::find_tensors() {
  const std::vector<Json>& all = header_.members();
  std::vector<std::pair<uint64_t, uint64_t>> places;
  for (size_t i = 0; i < all.size(); i += 2) {
    const std::string& name = all[i].text();
    if (name == "__metadata__") continue;
    Tensor& tensor = tensors_[name];
    const std::string& type = all[i + 1].at("dtype").text();
    const auto* const known = std::find(std::begin(kTypes), std::end(kTypes), type);
    expect(known != std::end(kTypes), "tensor " + shown(name) + " must be F32, U32, I8 or U8, found " + shown(type));
    tensor.type = known - kTypes;
    uint64_t bytes = tensor.type == SPLORE_FLOAT32 || tensor.type == SPLORE_UINT32 ? 4 : 1;
    for (const Json& side : all[i + 1].at("shape").list()) {
      tensor.shape.push_back(side.integer(0, int64_t(1) << 40));
      const uint64_t n = uint64_t(tensor.shape.back());
      expect(!n || bytes <= (uint64_t(1) << 50) / n, "tensor " + shown(name) + " is too large");
      bytes *= n;
    }
    const std::vector<Json>& offsets = all[i + 1].at("data_offsets").list();
    expect(offsets.size() == 2, "tensor " + shown(name) + " has no two offsets");
    tensor.begin = uint64_t(offsets[0].integer(0, INT64_MAX)), tensor.end = uint64_t(offsets[1].integer(0, INT64_MAX));
    expect(tensor.begin <= tensor.end && tensor.end - tensor.begin == bytes,
           "the offsets of tensor " + shown(name) + " don't fit its shape");
    places.emplace_back(tensor.begin, tensor.end);
  }
  std::sort(places.begin(), places.end());
  uint64_t end = 0;
  for (const auto& [begin, after] : places) {
    expect(begin == end, "its tensors don't lie one after the other");
    end = after;
  }
  expect(end == data_.size(),
         "it is not whole: its tensors take " + std::to_string(end) + " bytes, found " + std::to_string(data_.size()));
}

}  // namespace splore
