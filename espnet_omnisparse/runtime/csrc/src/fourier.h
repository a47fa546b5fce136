// A real Fourier transform of eight frames at once.
#pragma once

#include <vector>

namespace omnisparse {

class Fourier {
 public:
  explicit Fourier(int size);
  int size() const { return size_; }
  // x: [size][8]; power: [size / 2 + 1][8], the squares of the magnitudes.
  void power(const float* x, float* power);

 private:
  void halves();
  void join4(float* re, float* im, int apart, int angle);

  int size_;
  std::vector<int> reversed_;
  std::vector<float> cosine_, sine_;
  std::vector<float> re_, im_;
};

}  // namespace omnisparse
