// One recording on its way through a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model.h"

namespace omnisparse {

// Rows of one kind of output, of the last push or finish.
struct Output {
  std::vector<float> rows;
  size_t columns = 0;
};

class Stream {
 public:
  enum class Kind { kFeatures, kEncoder, kLogProbabilities, kCount };

  // A chunk of size 0: the recording is encoded as a whole, when it has ended.
  Stream(std::shared_ptr<Model> model, Chunk chunk, int beam, bool keep);

  void push(const float* samples, size_t count);
  void finish();
  void reset();

  const std::string& text();
  void tokens(std::vector<int>& ids, std::vector<float>& seconds) const;
  const Output& output(Kind kind) const { return outputs_[static_cast<int>(kind)]; }

 private:
  void take(const float* samples, size_t count, bool last);
  void encode(int frames);
  void keep(Kind kind, const Tiles& tiles);

  std::shared_ptr<Model> model_;
  Arena scratch_;
  Context context_;
  Chunk chunk_;
  FeatureStream features_;
  EncoderStream encoder_;
  std::unique_ptr<Search> search_;
  bool keep_, ended_ = false;
  std::vector<float> fresh_;  // feature frames just computed
  std::vector<float> rows_;   // feature frames that wait
  Output outputs_[static_cast<int>(Kind::kCount)];
  std::string text_;
  mutable std::vector<int> ids_, frames_;
};

}  // namespace omnisparse
