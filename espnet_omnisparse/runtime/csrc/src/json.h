// JSON, read strictly: what is not JSON is an error.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace omnisparse {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  static Json parse(const char* text, size_t size);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }

  // Each throws an Error if the value is of another kind.
  bool boolean() const;
  double number() const;
  long whole() const;  // a number without fraction that a long has
  const std::string& string() const;
  const std::vector<Json>& array() const;
  const std::vector<std::pair<std::string, Json>>& object() const;

  // The member of an object, or null if it has none of that name.
  const Json* find(const std::string& name) const;
  const Json& at(const std::string& name) const;  // throws

  // A whole number of an object, within bounds; throws.
  int bounded(const std::string& name, long least, long most) const;

 private:
  friend class JsonReader;
  Kind kind_ = Kind::kNull;
  bool boolean_ = false;
  double number_ = 0.0;
  std::string string_;
  std::vector<Json> array_;
  std::vector<std::pair<std::string, Json>> object_;
};

}  // namespace omnisparse
