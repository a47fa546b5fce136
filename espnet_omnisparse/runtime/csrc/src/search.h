// Searches for the text of one recording: encoder frames go in as they come.
#pragma once

#include <vector>

#include "kernels/ops.h"

namespace omnisparse {

class Search {
 public:
  virtual ~Search() = default;
  // Of CTC, log-probabilities; of a transducer, the encoder's output.
  virtual void push(const Tiles& frames, Context& context) = 0;
  // Token ids of the best hypothesis so far, and the encoder frame of each.
  virtual void best(std::vector<int>& ids, std::vector<int>& frames) const = 0;
  virtual void reset() = 0;
};

// The best token of every frame, repeats joined and blanks dropped.
class GreedyCtc : public Search {
 public:
  explicit GreedyCtc(int blank) : blank_(blank), last_(blank) {}
  void push(const Tiles& frames, Context& context) override;
  void best(std::vector<int>& ids, std::vector<int>& frames) const override;
  void reset() override;

 private:
  int blank_, last_, at_ = 0;
  std::vector<int> ids_, frames_;
};

}  // namespace omnisparse
