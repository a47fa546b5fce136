#include "audio.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace {

uint32_t number(const unsigned char* bytes, int count) {
  uint32_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

bool is(const unsigned char* bytes, const char* name) { return std::memcmp(bytes, name, 4) == 0; }

// The container that some bytes begin, where it is none that is read here.
const char* other_container(const unsigned char* bytes) {
  static const struct {
    const char* magic;
    const char* name;
  } kKnown[] = {{"fLaC", "FLAC"}, {"OggS", "Ogg"},  {"RF64", "RF64"}, {"NIST", "NIST SPHERE"},
                {"FORM", "AIFF"}, {".snd", "AU"},   {"caff", "CAF"},  {"wvpk", "WavPack"},
                {"#!AM", "AMR"},  {"\x1a\x45\xdf\xa3", "Matroska or WebM"}};
  for (const auto& known : kKnown)
    if (is(bytes, known.magic)) return known.name;
  if (is(bytes + 4, "ftyp")) return "MP4";
  return std::memcmp(bytes, "ID3", 3) == 0 ? "MP3" : nullptr;
}

}  // namespace

Audio::Audio(const std::string& name, int rate)
    : name_(name), told_(name == "-" ? "Standard input" : name), file_(stdin) {
  if (name != "-") {
    file_ = std::fopen(name.c_str(), "rb");
    if (file_ == nullptr)
      throw InputError("The audio " + name + " cannot be opened (" + std::strerror(errno) + ").");
  }
  try {
    read_header(rate);
  } catch (...) {
    if (file_ != stdin) std::fclose(file_);
    throw;
  }
}

Audio::~Audio() {
  if (file_ != stdin) std::fclose(file_);
}

void Audio::fail(const std::string& what) const { throw InputError(told_ + " " + what); }

size_t Audio::take(unsigned char* to, size_t size) {
  const size_t again = std::min(size, begun_.size());
  std::copy_n(begun_.begin(), again, to);
  begun_.erase(begun_.begin(), begun_.begin() + static_cast<long>(again));
  return again + std::fread(to + again, 1, size - again, file_);
}

void Audio::skip(size_t size) {
  unsigned char unused[4096];
  while (size > 0) {
    const size_t some = take(unused, std::min(size, sizeof(unused)));
    if (some == 0) fail("ends before its audio begins: it is damaged, or was not written whole.");
    size -= some;
  }
}

void Audio::read_header(int rate) {
  unsigned char head[12] = {};
  const size_t some = take(head, sizeof(head));
  if (std::ferror(file_)) fail(std::string("cannot be read (") + std::strerror(errno) + ").");
  const std::string remedy = ": turn it into one of 16-bit WAV with ffmpeg -i FILE -ar " +
                             std::to_string(rate) + " -ac 1 OUT.wav.";
  if (const char* other = some >= 8 ? other_container(head) : nullptr)
    fail(std::string("is a file of the kind ") + other + ", and only WAV can be read" + remedy);
  if (some < sizeof(head) || !is(head, "RIFF") || !is(head + 8, "WAVE")) {
    if (name_ != "-") fail("is not a WAV file" + remedy);
    begun_.assign(head, head + some);  // raw PCM
    return;
  }
  uint64_t at = sizeof(head);  // of what follows, in the file
  for (bool known = false;;) {
    unsigned char chunk[8];
    if (take(chunk, sizeof(chunk)) != sizeof(chunk))
      fail("has no audio in it: it is damaged, or was not written whole.");
    const uint32_t size = number(chunk + 4, 4);
    at += sizeof(chunk);
    if (is(chunk, "fmt ")) {
      read_format(size, rate);
      known = true;
    } else if (is(chunk, "data")) {
      if (!known) fail("does not tell its format before its audio: it is damaged.");
      // as written to a pipe, whose length was not known; an empty chunk that the file's
      // own length agrees with is empty
      const uint64_t whole = uint64_t{number(head + 4, 4)} + 8;
      const bool unknown = whole <= at || whole >= 0x7ffff000u;
      bounded_ = size < 0x7ffff000u && (size != 0 || !unknown);
      if (bounded_) left_ = size;
      return;
    } else {
      skip(static_cast<size_t>(size) + size % 2);
    }
    at += uint64_t{size} + size % 2;
  }
}

void Audio::read_format(uint32_t size, int rate) {
  unsigned char format[40] = {};
  const size_t inside = std::min<size_t>(size, sizeof(format));
  if (size < 16 || take(format, inside) != inside) fail("has a damaged header.");
  skip(size - inside + size % 2);
  uint32_t kind = number(format, 2);
  const uint32_t channels = number(format + 2, 2), found = number(format + 4, 4);
  const uint32_t bits = number(format + 14, 2);
  if (kind == 0xfffe && inside >= 26) kind = number(format + 24, 2);  // told further on
  if (channels != 1)
    fail("has " + std::to_string(channels) +
         " channels, and one is recognised: mix them with ffmpeg -i FILE -ac 1 OUT.wav.");
  if (found != static_cast<uint32_t>(rate))
    fail("has " + std::to_string(found) + " samples per second, and the model hears " +
         std::to_string(rate) + ": resample it with ffmpeg -i FILE -ar " + std::to_string(rate) +
         " OUT.wav.");
  if (kind == 1 && bits == 16)
    encoding_ = Encoding::kInt16;
  else if (kind == 1 && bits == 24)
    encoding_ = Encoding::kInt24;
  else if (kind == 1 && bits == 32)
    encoding_ = Encoding::kInt32;
  else if (kind == 3 && bits == 32)
    encoding_ = Encoding::kFloat32;
  else
    fail("is WAV of format " + std::to_string(kind) + " with " + std::to_string(bits) +
         " bits, and PCM of 16, 24 or 32 bits or floats can be read: convert it with ffmpeg -i "
         "FILE -c:a pcm_s16le OUT.wav.");
}

const std::vector<float>& Audio::read(size_t count) {
  const size_t width = encoding_ == Encoding::kInt16 ? 2 : encoding_ == Encoding::kInt24 ? 3 : 4;
  const size_t wanted = static_cast<size_t>(std::min<uint64_t>(count * width, left_));
  bytes_.resize(wanted);
  const size_t got = take(bytes_.data(), wanted);
  if (std::ferror(file_)) fail(std::string("cannot be read (") + std::strerror(errno) + ").");
  left_ -= got;
  if (got < wanted && bounded_)
    notice_ = told_ + " ends before its header says: what is there is recognised.";
  else if (got % width != 0)
    notice_ = told_ + " ends in the middle of a sample, which is left out.";
  if (got < wanted) left_ = 0;
  samples_.resize(got / width);
  for (size_t i = 0; i < samples_.size(); ++i) {
    const unsigned char* at = bytes_.data() + i * width;
    // the highest bits first, so that the sign is where it belongs
    const uint32_t bits = number(at, static_cast<int>(width)) << (32 - 8 * width);
    if (encoding_ == Encoding::kFloat32)
      std::memcpy(&samples_[i], &bits, sizeof(bits));
    else
      samples_[i] = static_cast<float>(static_cast<int32_t>(bits)) / 2147483648.0f;
  }
  return samples_;
}
