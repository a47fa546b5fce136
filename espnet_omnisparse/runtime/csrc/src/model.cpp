#include "model.h"

#include <algorithm>
#include <cmath>

#include "ctc_search.h"
#include "error.h"

namespace omnisparse {

namespace {

constexpr int kLargestBeam = 1024;

// The description as it was, without what only unpacking needs.
void write(const Json& value, std::string& out);

void write_string(const std::string& text, std::string& out) {
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", c);
      out += code;
    } else {
      out += c;
    }
  }
  out += '"';
}

void write(const Json& value, std::string& out) {
  const char* separator = "";
  switch (value.kind()) {
    case Json::Kind::kNull:
      out += "null";
      break;
    case Json::Kind::kBool:
      out += value.boolean() ? "true" : "false";
      break;
    case Json::Kind::kNumber: {
      char digits[32];
      std::snprintf(digits, sizeof(digits), "%.17g", value.number());
      out += digits;
      break;
    }
    case Json::Kind::kString:
      write_string(value.string(), out);
      break;
    case Json::Kind::kArray:
      out += '[';
      for (const Json& one : value.array()) {
        out += separator;
        write(one, out);
        separator = ",";
      }
      out += ']';
      break;
    case Json::Kind::kObject:
      out += '{';
      for (const auto& member : value.object()) {
        if (member.first == "espnet" || member.first == "sparse") continue;
        out += separator;
        write_string(member.first, out);
        out += ':';
        write(member.second, out);
        separator = ",";
      }
      out += '}';
  }
}

Normalisation read_normalisation(const Container& file, int features) {
  Normalisation made;
  const Json& told = file.model().at("normalize");
  if (told.is_null()) return made;
  made.means = told.at("norm_means").boolean();
  made.deviations = told.at("norm_vars").boolean();
  made.epsilon = static_cast<float>(told.at("eps").number());
  const std::string& kind = told.at("kind").string();
  if (kind == "global_mvn") {
    made.kind = Normalisation::Kind::kGlobal;
    made.mean = file.floats(told.at("mean").string(), features);
    made.scale = file.floats(told.at("std").string(), features);
  } else if (kind == "utterance_mvn") {
    made.kind = Normalisation::Kind::kRecording;
  } else {
    throw Error("The model's normalisation is " + kind +
                ", which this program has not: install a newer one.");
  }
  return made;
}

}  // namespace

void Normalisation::run(float* rows, size_t frames, size_t features) const {
  if (kind == Kind::kNone) return;
  for (size_t f = 0; f < features; ++f) {
    float shift = 0.0f, divisor = 1.0f;
    if (kind == Kind::kGlobal) {
      if (means) shift = mean[f];
      if (deviations) divisor = scale[f];
    } else {
      double sum = 0.0, squares = 0.0;
      for (size_t t = 0; t < frames; ++t) sum += rows[t * features + f];
      const double middle = sum / static_cast<double>(frames);
      for (size_t t = 0; t < frames; ++t) {
        const double apart = rows[t * features + f] - middle;
        squares += apart * apart;
      }
      if (means) shift = static_cast<float>(middle);
      if (deviations) {
        const double deviation = std::sqrt(squares / static_cast<double>(frames));
        divisor = std::max(static_cast<float>(deviation), epsilon);
      }
    }
    for (size_t t = 0; t < frames; ++t)
      rows[t * features + f] = (rows[t * features + f] - shift) / divisor;
  }
}

Spelling::Spelling(const Json& model) {
  const Json& text = model.at("text");
  const Json& kind = text.at("kind");
  const std::string name = kind.is_null() ? "word" : kind.string();
  pieces_ = name == "bpe";
  words_ = name == "word" || name == "phn";
  space_ = text.at("space").string();
  for (const Json& token : model.at("tokens").array()) tokens_.push_back(token.string());
  if (tokens_.empty()) throw Error("The model has no tokens.");
  silent_.assign(tokens_.size(), false);
  if (const Json* silent = model.find("silent")) {
    for (const Json& one : silent->array())
      for (size_t i = 0; i < tokens_.size(); ++i)
        if (tokens_[i] == one.string()) silent_[i] = true;
  }
}

namespace {

// What a byte-fallback piece, such as <0xE4>, is; -1: it is another piece.
int byte_of(const std::string& piece) {
  if (piece.size() != 6 || piece.compare(0, 3, "<0x") != 0 || piece[5] != '>') return -1;
  int value = 0;
  for (int at = 3; at < 5; ++at) {
    const char digit = piece[at];
    if (digit >= '0' && digit <= '9') value = 16 * value + digit - '0';
    else if (digit >= 'A' && digit <= 'F') value = 16 * value + digit - 'A' + 10;
    else return -1;
  }
  return value;
}

// Bytes of the UTF-8 character at a place; 0: there is none.
size_t character(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned lead = byte(at);
  if (lead < 0x80) return 1;
  const size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  for (size_t i = 1; i < size; ++i)
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  const unsigned next = byte(at + 1);  // overlong, surrogates, above U+10FFFF
  if ((lead == 0xE0 && next < 0xA0) || (lead == 0xED && next > 0x9F)) return 0;
  if ((lead == 0xF0 && next < 0x90) || (lead == 0xF4 && next > 0x8F)) return 0;
  return size;
}

// Each byte that is of no character becomes U+FFFD, as in sentencepiece.
std::string valid(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t size = character(text, at);
    out += size == 0 ? "\xef\xbf\xbd" : text.substr(at, size);
    at += size == 0 ? 1 : size;
  }
  return out;
}

}  // namespace

std::string Spelling::text(const std::vector<int>& ids) const {
  static const std::string kMark = "\xe2\x96\x81";  // U+2581
  std::string out;
  bool first = true, bytes = false;
  for (const int id : ids) {
    if (id < 0 || id >= size() || silent_[id]) continue;
    const std::string& token = tokens_[id];
    if (pieces_) {
      if (token == "<unk>") {  // as sentencepiece prints it
        out += " \xe2\x81\x87 ";
      } else if (const int byte = byte_of(token); byte >= 0) {
        out += static_cast<char>(byte);
        bytes = true;
      } else {
        size_t from = 0;
        for (size_t at; (at = token.find(kMark, from)) != std::string::npos;
             from = at + kMark.size()) {
          out += token.substr(from, at - from);
          if (!out.empty()) out += ' ';
        }
        out += token.substr(from);
      }
    } else if (words_) {
      if (!first) out += ' ';
      out += token;
    } else {
      out += token == space_ ? " " : token;
    }
    first = false;
  }
  return bytes ? valid(out) : out;
}

Model::Model(const std::string& path, int threads) : pool_(threads) {
  const Container file(path);
  const Json& told = file.model();
  write(told, info_);
  features_ = std::make_shared<FeatureConfig>(file);
  normalisation_ = read_normalisation(file, features_->mels);
  front_end_ = std::make_unique<FrontEnd>(file, features_->mels);
  encoder_ = std::make_shared<Encoder>(file);
  if (front_end_->width() != encoder_->width())
    throw Error("The model's front end and its encoder do not fit together.");
  spelling_ = std::make_unique<Spelling>(told);
  const size_t tokens = static_cast<size_t>(spelling_->size());
  if (told.at("blank").whole() != kBlank || tokens < 2)
    throw Error("The model's blank is not its first token: export it again.");
  const Json& head = told.at("head");
  if (!head.is_null()) {
    head_ = std::make_unique<Linear>(read_linear(file, head, tokens, encoder_->width()));
  }
  if (!told.at("transducer").is_null())
    transducer_ = std::make_shared<Transducer>(file, spelling_->size(), encoder_->width());
}

bool Model::can_stream() const {
  return encoder_->causal() && normalisation_.kind != Normalisation::Kind::kRecording;
}

std::unique_ptr<Search> Model::search(int beam) const {
  if (beam < 1 || beam > kLargestBeam)
    throw Error("A beam has 1 to " + std::to_string(kLargestBeam) + " hypotheses, not " +
                std::to_string(beam) + ".");
  if (transducer_ != nullptr) {
    if (beam == 1) return std::make_unique<GreedyTransducer>(transducer_);
    return std::make_unique<BeamTransducer>(transducer_, beam);
  }
  if (head_ == nullptr) throw Error("This model has no CTC head to recognise with.");
  if (beam == 1) return std::make_unique<GreedyCtc>();
  return std::make_unique<PrefixBeamCtc>(beam);
}

}  // namespace omnisparse
