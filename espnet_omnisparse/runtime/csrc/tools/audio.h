// Audio of a WAV file, or from a pipe, as it comes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

// What is wrong with the input, in one sentence.
class InputError : public std::runtime_error {
 public:
  explicit InputError(const std::string& sentence) : std::runtime_error(sentence) {}
};

class Audio {
 public:
  // name: a WAV file, or - for standard input, which is WAV or raw 16-bit PCM at `rate`.
  Audio(const std::string& name, int rate);
  ~Audio();
  Audio(const Audio&) = delete;
  Audio& operator=(const Audio&) = delete;

  // Up to `count` of the next samples, full scale being 1; none: it has ended.
  const std::vector<float>& read(size_t count);
  // What was odd about its end, in a sentence, or "".
  const std::string& notice() const { return notice_; }

 private:
  enum class Encoding { kInt16, kInt24, kInt32, kFloat32 };

  void read_header(int rate);
  void read_format(uint32_t size, int rate);
  size_t take(unsigned char* to, size_t size);
  void skip(size_t size);
  [[noreturn]] void fail(const std::string& what) const;

  std::string name_, told_;
  std::FILE* file_;
  std::vector<unsigned char> begun_;  // read already, to be read again
  Encoding encoding_ = Encoding::kInt16;
  uint64_t left_ = UINT64_MAX;  // bytes of audio
  bool bounded_ = false;        // whether the file tells how many
  std::vector<unsigned char> bytes_;
  std::vector<float> samples_;
  std::string notice_;
};
