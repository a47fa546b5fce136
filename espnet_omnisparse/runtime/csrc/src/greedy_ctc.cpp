#include "search.h"

namespace omnisparse {

void GreedyCtc::push(const Tiles& frames, Context&) {
  for (int t = 0; t < frames.frames; ++t, ++at_) {
    const float* from = frames.tile(t / frames.width) + t % frames.width;
    int token = 0;
    for (int c = 1; c < frames.channels; ++c) {
      if (from[static_cast<size_t>(c) * frames.width] >
          from[static_cast<size_t>(token) * frames.width])
        token = c;
    }
    if (token != last_ && token != blank_) {
      ids_.push_back(token);
      frames_.push_back(at_);
    }
    last_ = token;
  }
}

void GreedyCtc::best(std::vector<int>& ids, std::vector<int>& frames) const {
  ids = ids_;
  frames = frames_;
}

void GreedyCtc::reset() {
  last_ = blank_;
  at_ = 0;
  ids_.clear();
  frames_.clear();
}

}  // namespace omnisparse
