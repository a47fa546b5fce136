#include <algorithm>

#include "transducer.h"

namespace omnisparse {

BeamTransducer::BeamTransducer(std::shared_ptr<const Transducer> transducer, int beam)
    : transducer_(std::move(transducer)),
      // as ESPnet's, it looks at two tokens more than it keeps texts
      size_(static_cast<size_t>(
          std::max(1, std::min(beam, transducer_->vocabulary() - kBeta)))),
      tree_(transducer_->memory()) {
  reset();
}

void BeamTransducer::reset() {
  frame_ = 0;
  stamp_ = 0;
  tree_.reset();
  tree_.keep(tree_.root());
  beam_.assign(1, {tree_.root(), 0.0, 0});
}

void BeamTransducer::best(std::vector<int>& ids, std::vector<int>& frames) const {
  tree_.spell(beam_[0].text, ids, frames);
}

void BeamTransducer::push(const Tiles& frames, Context& context) {
  Scope scope(*context.scratch);
  extend(beam_, context);
  const Tiles projected =
      new_tiles(transducer_->width(), frames.frames, frames.width, context);
  transducer_->project(frames, projected, context);
  for (int t = 0; t < frames.frames; ++t, ++frame_) advance(projected, t, context);
}

// Fills the memories of the texts that have none.
void BeamTransducer::extend(const std::vector<Hypothesis>& texts, Context& context) {
  int labels[kLanes], count = 0;
  const float* before[kLanes];
  float* after[kLanes];
  for (const Hypothesis& one : texts) {
    Text* text = one.text;
    if (!text->ready) {
      text->ready = true;
      labels[count] = text->token;
      before[count] = text->parent != nullptr ? text->parent->memory.data() : nullptr;
      after[count++] = text->memory.data();
    }
    if (count == kLanes || (count > 0 && &one == &texts.back())) {
      transducer_->extend(labels, before, after, count, context);
      count = 0;
    }
  }
}

// Log-probabilities of the tokens after each text: use(number of the text, tile, lane).
template <class Use>
void BeamTransducer::score(const std::vector<Hypothesis>& texts, const Tiles& projected,
                           int frame, Context& context, const Use& use) {
  Scope scope(*context.scratch);
  const Tiles scores = new_tiles(transducer_->vocabulary(), kLanes, kLanes, context);
  int frames[kLanes];
  const float* memories[kLanes];
  std::fill_n(frames, kLanes, frame);
  for (size_t first = 0; first < texts.size(); first += kLanes) {
    const int count = static_cast<int>(std::min<size_t>(kLanes, texts.size() - first));
    for (int i = 0; i < count; ++i) memories[i] = texts[first + i].text->memory.data();
    transducer_->joint(projected, frames, memories, count, scores, context);
    log_softmax(scores, context);
    for (int i = 0; i < count; ++i) use(first + i, scores.data, i);
  }
}

void BeamTransducer::expand(const std::vector<Hypothesis>& from, const Tiles& projected,
                            int frame, Context& context) {
  grown_.clear();
  score(from, projected, frame, context, [&](size_t number, const float* tile, int lane) {
    largest(tile, kLanes, lane, 0, transducer_->vocabulary(), size_ + kBeta, candidates_);
    const double score = from[number].score;
    for (const Candidate& candidate : candidates_) {
      const double grown = score + static_cast<double>(candidate.score);
      if (grown < score + static_cast<double>(candidates_[0].score) - kGamma) break;
      if (candidate.token == kBlank)
        ended_.push_back({from[number].text, grown, 0});
      else
        grown_.push_back({tree_.child(from[number].text, candidate.token, frame_), grown, 0});
    }
  });
}

void BeamTransducer::advance(const Tiles& projected, int frame, Context& context) {
  ended_.clear();
  from_ = beam_;
  for (int step = 0; step < kSteps; ++step) {
    expand(from_, projected, frame, context);
    if (grown_.empty()) break;
    extend(grown_, context);
    from_ = grown_;
  }
  if (!grown_.empty()) {  // they end with a blank as well
    score(grown_, projected, frame, context, [&](size_t number, const float* tile, int lane) {
      const double blank = static_cast<double>(tile[kBlank * kLanes + lane]);
      ended_.push_back({grown_[number].text, grown_[number].score + blank, 0});
    });
  }
  keep_best();
  settle();
}

// The best of `ended_`, those of one text joined, are the beam.
void BeamTransducer::keep_best() {
  ++stamp_;
  merged_.clear();
  for (const Hypothesis& one : ended_) {
    Text* text = one.text;
    if (text->stamp == stamp_) {
      double& score = merged_[text->slot].score;
      score = log_add(score, one.score);
      continue;
    }
    text->stamp = stamp_;
    text->slot = merged_.size();
    merged_.push_back({text, one.score, merged_.size()});
  }
  const size_t kept = std::min(size_, merged_.size());
  std::partial_sort(merged_.begin(), merged_.begin() + static_cast<long>(kept), merged_.end(),
                    [](const Hypothesis& a, const Hypothesis& b) {
                      return a.score != b.score ? a.score > b.score : a.order < b.order;
                    });
  merged_.resize(kept);
  for (const Hypothesis& one : merged_) tree_.keep(one.text);
  for (const Hypothesis& one : beam_) tree_.drop(one.text);
  beam_.swap(merged_);
  tree_.sweep();
}

// What all texts grew from decides nothing any more. Where the beam has been undecided for
// long, it goes with the best text.
void BeamTransducer::settle() {
  Text* best = beam_[0].text;
  if (best->depth - tree_.root()->depth < 2 * kUndecided) return;
  const auto beyond = [](const Hypothesis& one, const Text* text) {
    return one.text->parent != nullptr && grew_from(one.text->parent, text);
  };
  Text* common = best->parent;
  for (const Hypothesis& one : beam_)
    while (common != nullptr && !beyond(one, common)) common = common->parent;
  if (common == nullptr || best->depth - common->depth > 2 * kUndecided) {
    common = above(best, kUndecided);
    size_t kept = 0;
    for (const Hypothesis& one : beam_) {
      if (beyond(one, common))
        beam_[kept++] = one;
      else
        tree_.drop(one.text);
    }
    beam_.resize(kept);
  }
  tree_.settle(common);
}

}  // namespace omnisparse
