#include "ctc_search.h"

#include <algorithm>

namespace omnisparse {

GreedyCtc::GreedyCtc() {
  ids_.reserve(kRoomForTokens);
  frames_.reserve(kRoomForTokens);
}

void GreedyCtc::push(const Tiles& frames, Context&) {
  int token[32];
  for (int t = 0; t < frames.frames; ++t, ++frame_) {
    const int lane = t % frames.width;
    if (lane == 0) argmax(frames.tile(t / frames.width), frames.channels, frames.width, token);
    if (token[lane] != last_ && token[lane] != kBlank) {
      ids_.push_back(token[lane]);
      frames_.push_back(frame_);
    }
    last_ = token[lane];
  }
}

void GreedyCtc::reset() {
  last_ = kBlank;
  frame_ = 0;
  ids_.clear();
  frames_.clear();
}

void GreedyCtc::best(std::vector<int>& ids, std::vector<int>& frames) const {
  ids = ids_;
  frames = frames_;
}

PrefixBeamCtc::PrefixBeamCtc(int beam, int prune) : size_(beam), prune_(prune) {
  beam_.reserve(size_);
  grown_.reserve(size_ * (prune_ + 1));
  candidates_.reserve(prune_);
  reset();
}

void PrefixBeamCtc::reset() {
  frame_ = 0;
  tree_.reset();
  tree_.keep(tree_.root());
  beam_.assign(1, {tree_.root(), 0.0, -INFINITY, 0.0, 0});
}

void PrefixBeamCtc::push(const Tiles& frames, Context&) {
  for (int t = 0; t < frames.frames; ++t, ++frame_)
    advance(frames.tile(t / frames.width), frames.channels, frames.width, t % frames.width);
  settle();
}

void PrefixBeamCtc::add(Text* text, double blank, double token) {
  if (text->stamp != frame_) {
    text->stamp = frame_;
    text->slot = grown_.size();
    grown_.push_back({text, -INFINITY, -INFINITY, 0.0, grown_.size()});
  }
  Scored& scored = grown_[text->slot];
  scored.blank = log_add(scored.blank, blank);
  scored.token = log_add(scored.token, token);
}

void PrefixBeamCtc::advance(const float* tile, int tokens, int width, int lane) {
  const auto log_prob = [&](int token) {
    return static_cast<double>(tile[static_cast<size_t>(token) * width + lane]);
  };
  largest(tile, width, lane, 1, tokens, prune_, candidates_);
  grown_.clear();
  for (const Scored& scored : beam_) {
    Text* text = scored.text;
    const double either = log_add(scored.blank, scored.token);
    add(text, either + log_prob(kBlank), scored.token + log_prob(text->token));
    for (const Candidate& candidate : candidates_) {
      // without a blank between them, two equal tokens are one
      const double before = candidate.token == text->token ? scored.blank : either;
      if (before == -INFINITY) continue;
      add(tree_.child(text, candidate.token, frame_), -INFINITY,
          before + log_prob(candidate.token));
    }
  }
  for (Scored& scored : grown_) scored.total = log_add(scored.blank, scored.token);
  const size_t kept = std::min(size_, grown_.size());
  std::partial_sort(grown_.begin(), grown_.begin() + kept, grown_.end(),
                    [](const Scored& a, const Scored& b) {
                      return a.total != b.total ? a.total > b.total : a.order < b.order;
                    });
  for (size_t i = 0; i < kept; ++i) tree_.keep(grown_[i].text);
  for (const Scored& scored : beam_) tree_.drop(scored.text);
  beam_.assign(grown_.begin(), grown_.begin() + kept);
  tree_.sweep();
}

// Goes with the best text, where the beam has been undecided for long.
void PrefixBeamCtc::settle() {
  Text* best = beam_[0].text;
  if (best->depth - tree_.root()->depth <= 2 * kUndecided) return;
  Text* root = above(best, kUndecided);
  size_t kept = 0;
  for (const Scored& scored : beam_) {
    if (grew_from(scored.text, root))
      beam_[kept++] = scored;
    else
      tree_.drop(scored.text);
  }
  beam_.resize(kept);
  tree_.settle(root);
}

}  // namespace omnisparse
