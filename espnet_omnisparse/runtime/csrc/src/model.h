// All of a packed file, ready to compute with; shared by any number of streams.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "container.h"
#include "encoder.h"
#include "features.h"
#include "front_end.h"
#include "search.h"
#include "transducer.h"

namespace omnisparse {

// (x - mean) / deviation of each feature; over all of a recording where there are none.
struct Normalisation {
  enum class Kind { kNone, kGlobal, kRecording };
  Kind kind = Kind::kNone;
  bool means = true, deviations = true;
  float epsilon = 0.0f;
  std::vector<float> mean, scale;

  void run(float* rows, size_t frames, size_t features) const;
};

// Tokens as text.
class Spelling {
 public:
  explicit Spelling(const Json& model);
  int size() const { return static_cast<int>(tokens_.size()); }
  const std::string& token(int id) const { return tokens_[id]; }
  std::string text(const std::vector<int>& ids) const;

 private:
  std::vector<std::string> tokens_;
  std::vector<bool> silent_;
  bool pieces_ = false;  // U+2581 begins a word
  bool words_ = false;   // blanks between tokens
  std::string space_;
};

class Model {
 public:
  Model(const std::string& path, int threads);

  const std::string& info() const { return info_; }
  int sample_rate() const { return features_->sample_rate; }
  const Spelling& spelling() const { return *spelling_; }
  ThreadPool& pool() { return pool_; }
  bool can_stream() const;

  std::shared_ptr<const FeatureConfig> features() const { return features_; }
  const Normalisation& normalisation() const { return normalisation_; }
  const FrontEnd& front_end() const { return *front_end_; }
  std::shared_ptr<const Encoder> encoder() const { return encoder_; }
  const Linear* head() const { return head_.get(); }
  bool is_transducer() const { return transducer_ != nullptr; }
  // A search of its own for each stream.
  std::unique_ptr<Search> search(int beam) const;

 private:
  ThreadPool pool_;
  std::string info_;
  std::shared_ptr<FeatureConfig> features_;
  Normalisation normalisation_;
  std::unique_ptr<FrontEnd> front_end_;
  std::shared_ptr<Encoder> encoder_;
  std::unique_ptr<Linear> head_;
  std::shared_ptr<Transducer> transducer_;
  std::unique_ptr<Spelling> spelling_;
};

}  // namespace omnisparse
