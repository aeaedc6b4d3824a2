// A small reader of JSON that trusts nothing: depth and the number of values are bounded.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "program.h"

namespace splore {

class Json {
 public:
  // Throws Error where the text is no JSON, or has more than a program could need.
  static Json parse(std::string_view text);

  // These throw Error where the value is something else, or a key is missing.
  int64_t integer() const;
  int64_t integer(int64_t least, int64_t most) const;
  double real() const;  // finite
  bool boolean() const;
  const std::string& text() const;
  const std::vector<Json>& list() const;
  const Json& at(std::string_view key) const;
  const Json* find(std::string_view key) const;  // or null
  // The keys and values of an object, one after the other.
  const std::vector<Json>& members() const;

 private:
  friend class JsonParser;
  enum Kind { kNull, kBoolean, kInteger, kNumber, kText, kList, kObject };
  void expect(Kind kind, const char* name) const;

  Kind kind_ = kNull;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string text_;
  std::vector<Json> items_;  // of a list; of an object, keys and values in turn
};

}  // namespace splore
