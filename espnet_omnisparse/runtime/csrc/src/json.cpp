#include "json.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace omnisparse {

namespace {
constexpr int kDeepest = 64;

[[noreturn]] void fail(const std::string& what) {
  throw Error("The file's description is damaged (" + what + ").");
}
}  // namespace

class JsonReader {
 public:
  JsonReader(const char* text, size_t size) : at_(text), end_(text + size) {}

  Json whole() {
    Json value = read(0);
    blanks();
    if (at_ != end_) fail("something follows the JSON");
    return value;
  }

 private:
  void blanks() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  char next() {
    if (at_ == end_) fail("the JSON ends early");
    return *at_++;
  }

  void word(const char* rest) {
    for (; *rest != '\0'; ++rest)
      if (next() != *rest) fail("a word that JSON has not");
  }

  Json read(int depth) {
    if (depth > kDeepest) fail("the JSON is nested too deep");
    blanks();
    Json value;
    const char first = next();
    switch (first) {
      case '{':
        value.kind_ = Json::Kind::kObject;
        read_object(value, depth);
        break;
      case '[':
        value.kind_ = Json::Kind::kArray;
        read_array(value, depth);
        break;
      case '"':
        value.kind_ = Json::Kind::kString;
        value.string_ = read_string();
        break;
      case 't':
        word("rue");
        value.kind_ = Json::Kind::kBool;
        value.boolean_ = true;
        break;
      case 'f':
        word("alse");
        value.kind_ = Json::Kind::kBool;
        break;
      case 'n':
        word("ull");
        break;
      default:
        --at_;
        value.kind_ = Json::Kind::kNumber;
        value.number_ = read_number();
    }
    return value;
  }

  void read_object(Json& value, int depth) {
    blanks();
    if (at_ != end_ && *at_ == '}') {
      ++at_;
      return;
    }
    while (true) {
      blanks();
      if (next() != '"') fail("a member has no name");
      std::string name = read_string();
      blanks();
      if (next() != ':') fail("a member has no value");
      value.object_.emplace_back(std::move(name), read(depth + 1));
      blanks();
      const char separator = next();
      if (separator == '}') return;
      if (separator != ',') fail("an object is not closed");
    }
  }

  void read_array(Json& value, int depth) {
    blanks();
    if (at_ != end_ && *at_ == ']') {
      ++at_;
      return;
    }
    while (true) {
      value.array_.push_back(read(depth + 1));
      blanks();
      const char separator = next();
      if (separator == ']') return;
      if (separator != ',') fail("an array is not closed");
    }
  }

  uint32_t read_hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = next();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("a character's code is no number");
      code = code << 4 | static_cast<uint32_t>(digit);
    }
    return code;
  }

  static void append_utf8(uint32_t code, std::string& out) {
    if (code < 0x80) {
      out += static_cast<char>(code);
    } else if (code < 0x800) {
      out += static_cast<char>(0xc0 | code >> 6);
      out += static_cast<char>(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      out += static_cast<char>(0xe0 | code >> 12);
      out += static_cast<char>(0x80 | (code >> 6 & 0x3f));
      out += static_cast<char>(0x80 | (code & 0x3f));
    } else {
      out += static_cast<char>(0xf0 | code >> 18);
      out += static_cast<char>(0x80 | (code >> 12 & 0x3f));
      out += static_cast<char>(0x80 | (code >> 6 & 0x3f));
      out += static_cast<char>(0x80 | (code & 0x3f));
    }
  }

  std::string read_string() {
    std::string out;
    while (true) {
      const char c = next();
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) fail("a string has a control character");
      if (c != '\\') {
        out += c;
        continue;
      }
      const char escaped = next();
      static const char kNames[] = "\"\\/bfnrt", kValues[] = "\"\\/\b\f\n\r\t";
      if (escaped == 'u') {
        uint32_t code = read_hex();
        if (code >= 0xd800 && code < 0xdc00) {  // the first half of a pair
          if (next() != '\\' || next() != 'u') fail("half a character");
          const uint32_t second = read_hex();
          if (second < 0xdc00 || second > 0xdfff) fail("half a character");
          code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
        }
        append_utf8(code, out);
      } else if (const char* found = std::strchr(kNames, escaped); escaped != '\0' && found) {
        out += kValues[found - kNames];
      } else {
        fail("an escape that JSON has not");
      }
    }
  }

  double read_number() {
    const char* begin = at_;
    while (at_ != end_ && (std::strchr("+-.eE", *at_) != nullptr ? *at_ != '\0'
                                                                 : *at_ >= '0' && *at_ <= '9'))
      ++at_;
    // a copy: the text need not end in a zero
    const std::string digits(begin, at_);
    char* stopped = nullptr;
    const double value = std::strtod(digits.c_str(), &stopped);
    if (digits.empty() || *stopped != '\0' || !std::isfinite(value)) fail("a number is none");
    return value;
  }

  const char* at_;
  const char* end_;
};

Json Json::parse(const char* text, size_t size) { return JsonReader(text, size).whole(); }

bool Json::boolean() const {
  if (kind_ != Kind::kBool) fail("a value is not true or false");
  return boolean_;
}

double Json::number() const {
  if (kind_ != Kind::kNumber) fail("a value is no number");
  return number_;
}

long Json::whole() const {
  const double value = number();
  if (value != std::floor(value) || std::fabs(value) > 9e15) fail("a number is not whole");
  return static_cast<long>(value);
}

const std::string& Json::string() const {
  if (kind_ != Kind::kString) fail("a value is no string");
  return string_;
}

const std::vector<Json>& Json::array() const {
  if (kind_ != Kind::kArray) fail("a value is no list");
  return array_;
}

const std::vector<std::pair<std::string, Json>>& Json::object() const {
  if (kind_ != Kind::kObject) fail("a value is no object");
  return object_;
}

const Json* Json::find(const std::string& name) const {
  for (const auto& member : object())
    if (member.first == name) return &member.second;
  return nullptr;
}

const Json& Json::at(const std::string& name) const {
  const Json* found = find(name);
  if (found == nullptr) fail("it has no " + name);
  return *found;
}

int Json::bounded(const std::string& name, long least, long most) const {
  const long value = at(name).whole();
  if (value < least || value > most) fail(name + " is out of bounds");
  return static_cast<int>(value);
}

}  // namespace omnisparse
