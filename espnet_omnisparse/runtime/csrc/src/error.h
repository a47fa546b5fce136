#pragma once

#include <stdexcept>
#include <string>

namespace omnisparse {

// A mistake of the user's, or a file that is none of ours: one sentence that says so.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& sentence) : std::runtime_error(sentence) {}
};

}  // namespace omnisparse
