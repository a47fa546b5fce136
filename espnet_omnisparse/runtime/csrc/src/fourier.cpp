#include "fourier.h"

#include <cmath>
#include <cstring>
#include <string>

#include "error.h"

namespace omnisparse {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kLanes = 8;

// Four of the frames: as many as one register of every CPU holds.
typedef float Lanes __attribute__((vector_size(16)));
constexpr int kInside = 4;

inline void get(const float* from, Lanes& x) { std::memcpy(&x, from, sizeof(x)); }
inline void put(const Lanes& x, float* to) { std::memcpy(to, &x, sizeof(x)); }

// (re, im) times c - i s.
inline void turn(Lanes& re, Lanes& im, float c, float s) {
  const Lanes turned = re * c + im * s;
  im = im * c - re * s;
  re = turned;
}

}  // namespace

Fourier::Fourier(int size) : size_(size) {
  const bool power_of_two = size >= 4 && (size & (size - 1)) == 0;
  if (!power_of_two) {
    throw Error("Only features with an n_fft that is a power of two can be computed, not " +
                std::to_string(size) + ".");
  }
  const int half = size / 2;
  reversed_.assign(half, 0);
  for (int i = 1; i < half; ++i)
    reversed_[i] = reversed_[i / 2] / 2 + (i % 2 != 0 ? half / 2 : 0);
  for (int i = 0; i < size; ++i) {
    cosine_.push_back(static_cast<float>(std::cos(2 * kPi * i / size)));
    sine_.push_back(static_cast<float>(std::sin(2 * kPi * i / size)));
  }
  re_.resize(static_cast<size_t>(half) * kLanes);
  im_.resize(re_.size());
}

// The complex transform of size / 2 points, in place, of points in reversed order.
void Fourier::halves() {
  const int points = size_ / 2;
  int done = 1;  // points that are transformed together so far
  const auto at = [](std::vector<float>& x, int i) { return &x[static_cast<size_t>(i) * kLanes]; };
  bool odd = false;
  for (int rest = points; rest > 1; rest /= 2) odd = !odd;
  if (odd) {  // pairs first, so that what is left is a power of four
    for (int i = 0; i < points; i += 2) {
      for (std::vector<float>* x : {&re_, &im_}) {
        for (int lane = 0; lane < kLanes; lane += kInside) {
          Lanes a, b;
          get(at(*x, i) + lane, a);
          get(at(*x, i + 1) + lane, b);
          put(a + b, at(*x, i) + lane);
          put(a - b, at(*x, i + 1) + lane);
        }
      }
    }
    done = 2;
  }
  for (; done < points; done *= 4) {
    const int step = size_ / (4 * done);
    for (int k = 0; k < done; ++k) {
      for (int i = k; i < points; i += 4 * done)
        for (int lane = 0; lane < kLanes; lane += kInside)
          join4(at(re_, i) + lane, at(im_, i) + lane, done, k * step);
    }
  }
}

// Four transforms, `apart` points from each other, become one.
inline void Fourier::join4(float* re_at, float* im_at, int apart, int angle) {
  const size_t stride = static_cast<size_t>(apart) * kLanes;
  Lanes re[4], im[4];
  for (int part = 0; part < 4; ++part) {
    get(re_at + part * stride, re[part]);
    get(im_at + part * stride, im[part]);
  }
  if (angle != 0) {
    turn(re[1], im[1], cosine_[2 * angle], sine_[2 * angle]);
    turn(re[2], im[2], cosine_[angle], sine_[angle]);
    turn(re[3], im[3], cosine_[3 * angle], sine_[3 * angle]);
  }
  const Lanes sum_re = re[0] + re[1], sum_im = im[0] + im[1];
  const Lanes apart_re = re[0] - re[1], apart_im = im[0] - im[1];
  const Lanes last_re = re[2] + re[3], last_im = im[2] + im[3];
  const Lanes cross_re = re[2] - re[3], cross_im = im[2] - im[3];
  put(sum_re + last_re, re_at);
  put(sum_im + last_im, im_at);
  put(apart_re + cross_im, re_at + stride);
  put(apart_im - cross_re, im_at + stride);
  put(sum_re - last_re, re_at + 2 * stride);
  put(sum_im - last_im, im_at + 2 * stride);
  put(apart_re - cross_im, re_at + 3 * stride);
  put(apart_im + cross_re, im_at + 3 * stride);
}

void Fourier::power(const float* x, float* power) {
  // even and odd samples as one complex signal of half the length
  const int half = size_ / 2;
  for (int i = 0; i < half; ++i) {
    const size_t from = static_cast<size_t>(2 * i) * kLanes;
    const size_t to = static_cast<size_t>(reversed_[i]) * kLanes;
    std::memcpy(&re_[to], x + from, kLanes * sizeof(float));
    std::memcpy(&im_[to], x + from + kLanes, kLanes * sizeof(float));
  }
  halves();
  for (int k = 0; k <= half; ++k) {
    const size_t here = static_cast<size_t>(k % half) * kLanes;
    const size_t there = static_cast<size_t>((half - k) % half) * kLanes;
    for (int lane = 0; lane < kLanes; lane += kInside) {
      Lanes z_re, z_im, w_re, w_im;
      get(&re_[here + lane], z_re);
      get(&im_[here + lane], z_im);
      get(&re_[there + lane], w_re);
      get(&im_[there + lane], w_im);
      const Lanes even_re = 0.5f * (z_re + w_re), even_im = 0.5f * (z_im - w_im);
      Lanes odd_re = 0.5f * (z_im + w_im), odd_im = 0.5f * (w_re - z_re);
      turn(odd_re, odd_im, cosine_[k], sine_[k]);
      const Lanes re = even_re + odd_re, im = even_im + odd_im;
      put(re * re + im * im, power + static_cast<size_t>(k) * kLanes + lane);
    }
  }
}

}  // namespace omnisparse
