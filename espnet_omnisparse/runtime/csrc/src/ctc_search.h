// Searches over the log-probabilities of a CTC head.
#pragma once

#include <vector>

#include "search.h"
#include "text_tree.h"

namespace omnisparse {

// The best token of every frame, repeats joined and blanks dropped.
class GreedyCtc : public Search {
 public:
  GreedyCtc();
  void push(const Tiles& frames, Context& context) override;
  void best(std::vector<int>& ids, std::vector<int>& frames) const override;
  void reset() override;

 private:
  int last_ = kBlank;
  int frame_ = 0;
  std::vector<int> ids_, frames_;
};

// CTC prefix beam search: the text most probable over all of its alignments.
// Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
// Recurrent DNNs, 2014, arXiv:1408.2873, without a language model.
class PrefixBeamCtc : public Search {
 public:
  // beam: texts kept after each frame; prune: tokens that may extend a text in a frame, the
  // most probable ones. Blank and a repeat of the last token are always scored.
  PrefixBeamCtc(int beam, int prune = 8);
  void push(const Tiles& frames, Context& context) override;
  void best(std::vector<int>& ids, std::vector<int>& frames) const override {
    tree_.spell(beam_[0].text, ids, frames);
  }
  void reset() override;

 private:
  // A text, and log-probabilities of its alignments that end in blank and in a token.
  struct Scored {
    Text* text;
    double blank;
    double token;
    double total;
    size_t order;
  };

  void advance(const float* tile, int tokens, int width, int lane);
  void add(Text* text, double blank, double token);
  void settle();

  size_t size_;
  size_t prune_;
  int frame_ = 0;
  TextTree tree_;
  std::vector<Scored> beam_;
  std::vector<Scored> grown_;
  std::vector<Candidate> candidates_;
};

}  // namespace omnisparse
