// A transducer: its prediction network and its joint network, and searches with them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "container.h"
#include "search.h"
#include "text_tree.h"

namespace omnisparse {

constexpr int kLanes = 8;  // hypotheses, or frames, that are computed together

// The network that a text's labels go through, one after the other.
class Predictor {
 public:
  Predictor(const Container& file, const Json& told, int vocabulary);

  int outputs() const { return width_; }
  // Floats of the state after a label; before the first one it is zeros.
  size_t state() const { return layers_.size() * width_ * (long_short_ ? 2 : 1); }
  // One more label of each of up to kLanes texts: states before and after it, and the output.
  void step(const int* labels, const float* const* before, float* const* after, int count,
            const Tiles& out, Context& context) const;

 private:
  struct Layer {
    Linear input, hidden;
  };
  void long_short(const Layer& layer, const Tiles& x, const Tiles& h, const Tiles& c,
                  Context& context) const;
  void gated(const Layer& layer, const Tiles& x, const Tiles& h, Context& context) const;

  int inputs_, width_;
  bool long_short_ = false;
  std::vector<float> embedding_;  // [vocabulary][inputs]
  std::vector<Layer> layers_;
};

// Shared by all streams.
class Transducer {
 public:
  Transducer(const Container& file, int vocabulary, int encoder_width);

  const Predictor& predictor() const { return predictor_; }
  int vocabulary() const { return output_.outputs(); }
  int width() const { return encoder_.outputs(); }  // of the joint space
  // Floats that are kept with each text: the predictor's state and its projected output.
  size_t memory() const { return predictor_.state() + static_cast<size_t>(width()); }

  // Texts that end in `labels`: memories of the texts before (null: none) and of these.
  void extend(const int* labels, const float* const* before, float* const* after, int count,
              Context& context) const;
  // The encoder's output in the joint space.
  void project(const Tiles& frames, const Tiles& out, Context& context) const;
  // Scores of all tokens, before the softmax, in each lane of 8: `count` pairs of a frame of
  // `projected` and a text's memory.
  void joint(const Tiles& projected, const int* frames, const float* const* memories, int count,
             const Tiles& scores, Context& context) const;

 private:
  Predictor predictor_;
  Linear encoder_, decoder_, output_;
  Activation activation_;
};

// The best token again and again until it is blank, then the next frame.
class GreedyTransducer : public Search {
 public:
  explicit GreedyTransducer(std::shared_ptr<const Transducer> transducer);
  void push(const Tiles& frames, Context& context) override;
  void best(std::vector<int>& ids, std::vector<int>& frames) const override;
  void reset() override;

 private:
  void extend(int token, Context& context);

  static constexpr int kMostSymbols = 5;  // of a frame
  std::shared_ptr<const Transducer> transducer_;
  bool begun_ = false;
  int frame_ = 0;
  std::vector<float> memory_, next_;
  std::vector<int> ids_, frames_;
};

// ESPnet's modified adaptive expansion search: up to two tokens in a frame, and of those only
// ones about as likely as a text's best. Kim et al., Accelerating RNN Transducer Inference via
// Adaptive Expansion Search, 2020; arXiv:2201.05420.
class BeamTransducer : public Search {
 public:
  BeamTransducer(std::shared_ptr<const Transducer> transducer, int beam);
  void push(const Tiles& frames, Context& context) override;
  void best(std::vector<int>& ids, std::vector<int>& frames) const override;
  void reset() override;

 private:
  struct Hypothesis {
    Text* text;
    double score;
    size_t order;
  };

  void advance(const Tiles& projected, int frame, Context& context);
  // The tokens that may follow each hypothesis of `from`, into `ended_` or `grown_`.
  void expand(const std::vector<Hypothesis>& from, const Tiles& projected, int frame,
              Context& context);
  void extend(const std::vector<Hypothesis>& texts, Context& context);
  template <class Use>
  void score(const std::vector<Hypothesis>& texts, const Tiles& projected, int frame,
             Context& context, const Use& use);
  void keep_best();
  void settle();

  static constexpr int kSteps = 2;
  static constexpr double kGamma = 2.3;  // log-probability that an expansion may lack
  static constexpr int kBeta = 2;        // candidates beyond the beam
  std::shared_ptr<const Transducer> transducer_;
  size_t size_;
  int frame_ = 0;
  long stamp_ = 0;
  TextTree tree_;
  std::vector<Hypothesis> beam_, from_, ended_, grown_, merged_;
  std::vector<Candidate> candidates_;
};

}  // namespace omnisparse
