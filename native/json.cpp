#include "json.h"

#include <cmath>
#include <locale>
#include <set>
#include <sstream>

namespace splore {

namespace {

constexpr int kDepth = 32;
constexpr int64_t kValues = int64_t(1) << 21;

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Json parse() {
    Json whole = value(0);
    skip();
    if (at_ != text_.size()) fail("more text follows its end");
    return whole;
  }

 private:
  [[noreturn]] void fail(const char* what) const { throw Error("byte " + std::to_string(at_) + " of the JSON: " + what); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    at_++;
    return true;
  }
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) at_++;
  }

  Json value(int depth) {
    if (depth > kDepth) fail("it is nested too deeply");
    if (++values_ > kValues) fail("it has too many values");
    skip();
    Json found;
    const char c = peek();
    if (c == '{' || c == '[') {
      found.kind_ = c == '{' ? Json::kObject : Json::kList;
      items(found, depth);
    } else if (c == '"') {
      found.kind_ = Json::kText, found.text_ = quoted();
    } else if (c == '-' || (c >= '0' && c <= '9')) {
      number(found);
    } else if (word("true") || word("false")) {
      found.kind_ = Json::kBoolean, found.integer_ = c == 't';
    } else if (!word("null")) {
      fail("a value was expected");
    }
    return found;
  }

  bool word(std::string_view name) {
    if (text_.substr(at_, name.size()) != name) return false;
    at_ += name.size();
    return true;
  }

  void items(Json& found, int depth) {
    const bool object = found.kind_ == Json::kObject;
    const char end = object ? '}' : ']';
    std::set<std::string> keys;
    at_++;
    skip();
    if (take(end)) return;
    do {
      skip();
      if (object) {
        if (peek() != '"') fail("a key was expected");
        Json key;
        key.kind_ = Json::kText, key.text_ = quoted();
        if (!keys.insert(key.text_).second) fail("a key comes twice");
        found.items_.push_back(std::move(key));
        skip();
        if (!take(':')) fail("a colon was expected");
      }
      found.items_.push_back(value(depth + 1));
      skip();
    } while (take(','));
    if (!take(end)) fail("a comma or the end of a list was expected");
  }

  void number(Json& found) {
    const size_t begin = at_;
    const bool negative = take('-');
    const size_t start = at_;
    uint64_t sum = 0;
    bool whole = true;
    const auto digits = [&](bool count) {
      if (peek() < '0' || peek() > '9') fail("a digit was expected");
      for (; peek() >= '0' && peek() <= '9'; at_++) {
        const uint64_t digit = uint64_t(peek() - '0');
        if (count && sum > (uint64_t(INT64_MAX) - digit) / 10) whole = false;
        if (count && whole) sum = 10 * sum + digit;
      }
    };
    digits(true);
    if (text_[start] == '0' && at_ > start + 1) fail("a number starts with 0");
    if (take('.')) whole = false, digits(false);
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      digits(false);
    }
    found.kind_ = whole ? Json::kInteger : Json::kNumber;
    found.integer_ = negative ? -int64_t(sum) : int64_t(sum);
    std::istringstream text{std::string(text_.substr(begin, at_ - begin))};
    text.imbue(std::locale::classic());
    if (!(text >> found.real_)) found.real_ = INFINITY;
  }

  std::string quoted() {
    std::string out;
    at_++;
    for (;;) {
      if (at_ >= text_.size()) fail("a text does not end");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a text");
      if (c == '\\')
        escape(out);
      else
        out += c;
    }
  }

  void escape(std::string& out) {
    const char c = peek();
    at_++;
    const std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
    if (const size_t place = from.find(c); place != std::string_view::npos) {
      out += to[place];
    } else if (c == 'u') {
      uint32_t code = hex();
      if (code >= 0xD800 && code < 0xDC00) {
        if (!take('\\') || !take('u')) fail("half of a surrogate pair");
        const uint32_t low = hex();
        if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else if (code >= 0xDC00 && code <= 0xDFFF) {
        fail("half of a surrogate pair");
      }
      append(out, code);
    } else {
      fail("no such escape");
    }
  }

  uint32_t hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; i++) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("four hexadecimal digits were expected");
      code = code << 4 | uint32_t(digit);
      at_++;
    }
    return code;
  }

  // In UTF-8.
  static void append(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += char(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t first[] = {0, 0xC0, 0xE0, 0xF0};
    out += char(first[more] | code >> 6 * more);
    for (int i = more - 1; i >= 0; i--) out += char(0x80 | (code >> 6 * i & 0x3F));
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonParser(text).parse(); }

void Json::expect(Kind kind, const char* name) const {
  if (kind_ != kind) throw Error(std::string("expected ") + name);
}

int64_t Json::integer() const {
  expect(kInteger, "a whole number");
  return integer_;
}

int64_t Json::integer(int64_t least, int64_t most) const {
  if (integer() < least || integer() > most)
    throw Error("expected a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", found " +
                std::to_string(integer_));
  return integer_;
}

double Json::real() const {
  if (kind_ != kInteger) expect(kNumber, "a number");
  if (!std::isfinite(real_)) throw Error("expected a finite number");
  return real_;
}

bool Json::boolean() const {
  expect(kBoolean, "true or false");
  return integer_ != 0;
}

const std::string& Json::text() const {
  expect(kText, "a text");
  return text_;
}

const std::vector<Json>& Json::list() const {
  expect(kList, "a list");
  return items_;
}

const std::vector<Json>& Json::members() const {
  expect(kObject, "a JSON object");
  return items_;
}

const Json* Json::find(std::string_view key) const {
  const std::vector<Json>& all = members();
  for (size_t i = 0; i < all.size(); i += 2)
    if (all[i].text_ == key) return &all[i + 1];
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  if (const Json* found = find(key)) return *found;
  throw Error("'" + std::string(key) + "' is missing");
}

}  // namespace splore
