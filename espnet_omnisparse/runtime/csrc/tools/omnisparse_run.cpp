// omnisparse-run: recognises a recording with a packed model.
#include <omnisparse.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "audio.h"

namespace {

const char kUsage[] =
    "Usage: omnisparse-run MODEL AUDIO [options]\n"
    "\n"
    "Prints what is said in a recording.\n"
    "\n"
    "  MODEL        a packed model, which omnisparse export --to packed writes\n"
    "  AUDIO        a WAV file at the model's rate; -: WAV or raw 16-bit PCM on stdin\n"
    "  --stream     print words as they come\n"
    "  --json       print text, tokens, their times in seconds and the speed as JSON\n"
    "  --beam N     hypotheses kept (1: greedy search)\n"
    "  --chunk N    encoder frames encoded together (the model's own)\n"
    "  --left N     encoder frames seen before them (4 chunks, or the model's own)\n"
    "  --threads N  of the computation (1)\n";

struct Options {
  std::string model, audio;
  bool live = false, json = false;
  int threads = 1;
  omnisparse_stream_options stream{0, 0, -1, 1, 0};
};

struct UsageError : InputError {
  using InputError::InputError;
};

int number_of(const std::string& name, const char* text, long least) {
  char* end = nullptr;
  const long value = text != nullptr ? std::strtol(text, &end, 10) : 0;
  if (text == nullptr || end == text || *end != '\0' || value < least || value > 1 << 20)
    throw UsageError(name + " needs a whole number from " + std::to_string(least) + " to " +
                     std::to_string(1 << 20) + ".");
  return static_cast<int>(value);
}

Options parse(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const char* next = i + 1 < count ? words[i + 1] : nullptr;
    if (word == "--stream") {
      options.live = true;
    } else if (word == "--json") {
      options.json = true;
    } else if (word == "--beam") {
      options.stream.beam = number_of(word, next, 1), ++i;
    } else if (word == "--chunk") {
      options.stream.chunk = number_of(word, next, 1), ++i;
    } else if (word == "--left") {
      options.stream.left = number_of(word, next, 0), ++i;
    } else if (word == "--threads") {
      options.threads = number_of(word, next, 1), ++i;
    } else if (word.size() > 1 && word[0] == '-') {
      throw UsageError("There is no option " + word + ".");
    } else if (options.model.empty()) {
      options.model = word;
    } else if (options.audio.empty()) {
      options.audio = word;
    } else {
      throw UsageError("One model and one recording are named, and " + word + " is one more.");
    }
  }
  if (options.audio.empty()) throw UsageError("Name a model and a recording.");
  if (options.stream.chunk != 0 && options.stream.left < 0)
    options.stream.left = 4 * options.stream.chunk;
  if (options.stream.chunk == 0 && options.stream.left >= 0)
    throw UsageError("--left needs --chunk beside it.");
  return options;
}

// Text that is printed as it grows; where a beam revises it, all of it again at the end.
class Printer {
 public:
  void show(const std::string& text) {
    if (text.compare(0, written_.size(), written_) != 0) return;
    std::fputs(text.c_str() + written_.size(), stdout);
    std::fflush(stdout);
    written_ = text;
  }
  void end(const std::string& text) {
    show(text);
    if (text != written_) std::printf("\n%s", text.c_str());
    std::fputc('\n', stdout);
  }

 private:
  std::string written_;
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      out += code;
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

void print_json(const omnisparse_model* model, omnisparse_stream* stream, double seconds,
                double spent) {
  std::printf("{\"text\": %s, \"tokens\": [", quoted(omnisparse_stream_text(stream)).c_str());
  const int* ids = nullptr;
  const float* times = nullptr;
  const size_t count = omnisparse_stream_tokens(stream, &ids, &times);
  for (size_t i = 0; i < count; ++i)
    std::printf("%s{\"token\": %s, \"seconds\": %.3f}", i == 0 ? "" : ", ",
                quoted(omnisparse_token(model, ids[i])).c_str(), static_cast<double>(times[i]));
  std::printf("], \"audio_s\": %.3f, \"rtf\": %.5f, \"isa\": \"%s\"}\n", seconds,
              seconds > 0 ? spent / seconds : 0.0, omnisparse_isa());
}

[[noreturn]] void fail() { throw InputError(omnisparse_last_error()); }

void run(const Options& options) {
  using Clock = std::chrono::steady_clock;
  const std::unique_ptr<omnisparse_model, void (*)(omnisparse_model*)> model(
      omnisparse_load(options.model.c_str(), options.threads), omnisparse_free);
  if (model == nullptr) fail();
  if (options.live && options.stream.chunk == 0 && omnisparse_chunk(model.get()) == 0)
    throw InputError(
        omnisparse_can_stream(model.get())
            ? "This model has no chunk of its own: --stream needs --chunk beside it."
            : "This model cannot stream, since it sees the future: leave --stream out.");
  const std::unique_ptr<omnisparse_stream, void (*)(omnisparse_stream*)> stream(
      omnisparse_stream_new(model.get(), &options.stream), omnisparse_stream_free);
  if (stream == nullptr) fail();
  const int rate = omnisparse_sample_rate(model.get());
  Audio audio(options.audio, rate);
  Printer printer;
  size_t samples = 0;
  double spent = 0.0;
  for (bool more = true; more;) {
    const std::vector<float>& block = audio.read(static_cast<size_t>(rate) / 10);
    more = !block.empty();
    samples += block.size();
    const auto start = Clock::now();
    const int wrong = more ? omnisparse_stream_push(stream.get(), block.data(), block.size())
                           : omnisparse_stream_finish(stream.get());
    spent += std::chrono::duration<double>(Clock::now() - start).count();
    if (wrong) fail();
    if (options.live && !options.json && more) printer.show(omnisparse_stream_text(stream.get()));
  }
  if (samples == 0) throw InputError("There is no audio in the input.");
  if (!audio.notice().empty()) std::fprintf(stderr, "%s\n", audio.notice().c_str());
  if (options.json)
    print_json(model.get(), stream.get(), static_cast<double>(samples) / rate, spent);
  else
    printer.end(omnisparse_stream_text(stream.get()));
  if (std::fflush(stdout) != 0 || std::ferror(stdout))
    throw InputError(std::string("The text cannot be written (") + std::strerror(errno) + ").");
}

}  // namespace

int main(int count, char** words) {
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(words[i], "--help") == 0 || std::strcmp(words[i], "-h") == 0) {
      std::fputs(kUsage, stdout);
      return 0;
    }
    if (std::strcmp(words[i], "--version") == 0) {
      std::printf("omnisparse-run %s\n", omnisparse_version());
      return 0;
    }
  }
  try {
    run(parse(count, words));
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s\n\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
