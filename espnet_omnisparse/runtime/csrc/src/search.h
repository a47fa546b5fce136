// Searches for the text of one recording: encoder frames go in as they come.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/ops.h"

namespace omnisparse {

constexpr int kBlank = 0;
// Labels that a beam may leave undecided. Two texts that differ in one old label can stay in a
// beam for ever, and all that follows would be held with both.
constexpr long kUndecided = 128;

// Tokens that a greedy search has room for from the start.
constexpr size_t kRoomForTokens = 1024;

// Holds all the state of one recording. How the frames are divided does not matter.
class Search {
 public:
  virtual ~Search() = default;
  // Of CTC, log-probabilities; of a transducer, the encoder's output.
  virtual void push(const Tiles& frames, Context& context) = 0;
  // Token ids of the best hypothesis so far, and the encoder frame of each.
  virtual void best(std::vector<int>& ids, std::vector<int>& frames) const = 0;
  virtual void reset() = 0;
};

inline double log_add(double a, double b) {
  const double high = a > b ? a : b, low = a > b ? b : a;
  return low == -INFINITY ? high : high + std::log1p(std::exp(low - high));
}

struct Candidate {
  int token;
  float score;
};

// The largest of tokens first .. last of one lane of a tile; of equal ones the earlier.
void largest(const float* tile, int width, int lane, int first, int last, size_t count,
             std::vector<Candidate>& found);

// The largest channel of each lane of a tile.
void argmax(const float* tile, int channels, int width, int* index);

}  // namespace omnisparse
