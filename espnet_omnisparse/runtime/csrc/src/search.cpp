#include "search.h"

#include <algorithm>

namespace omnisparse {

void largest(const float* tile, int width, int lane, int first, int last, size_t count,
             std::vector<Candidate>& found) {
  found.clear();
  for (int token = first; token < last; ++token) {
    const float score = tile[static_cast<size_t>(token) * width + lane];
    if (found.size() == count) {
      if (!(score > found.back().score)) continue;
      found.pop_back();
    }
    auto at = found.end();
    while (at != found.begin() && score > (at - 1)->score) --at;
    found.insert(at, {token, score});
  }
}

void argmax(const float* tile, int channels, int width, int* index) {
  float best[32];
  std::copy_n(tile, width, best);
  std::fill_n(index, width, 0);
  for (int c = 1; c < channels; ++c) {
    const float* row = tile + static_cast<size_t>(c) * width;
    for (int lane = 0; lane < width; ++lane) {
      const bool larger = row[lane] > best[lane];
      best[lane] = larger ? row[lane] : best[lane];
      index[lane] = larger ? c : index[lane];
    }
  }
}

}  // namespace omnisparse
