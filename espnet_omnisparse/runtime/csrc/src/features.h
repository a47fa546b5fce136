// Features of audio as it comes: log-mel energies of ESPnet's default frontend, or Kaldi's.
#pragma once

#include <memory>
#include <vector>

#include "container.h"

namespace omnisparse {

// A real Fourier transform of eight frames at once.
class Fourier {
 public:
  explicit Fourier(int size);
  int size() const { return size_; }
  // x: [size][8]; power: [size / 2 + 1][8], the squares of the magnitudes.
  void power(const float* x, float* power);

 private:
  void halves(float* re, float* im) const;  // in place, size / 2 points, a power of two
  int size_;
  std::vector<int> reversed_;
  std::vector<float> cosine_, sine_;
  std::vector<float> re_, im_;
};

// What all streams of a model share.
struct FeatureConfig {
  int sample_rate = 16000;
  int transform = 0;  // points of the Fourier transform
  int length = 0;     // samples of a frame
  int hop = 0;        // from a frame to the next
  // Samples mirrored at the ends, and whether about the sample at the end, or with it.
  int before = 0, behind = 0;
  bool about = true;
  int shortest = 1;   // samples that it takes to mirror the start
  bool centred = false;  // the mean of a frame is subtracted
  float emphasis = 0.0f; // the part of the sample before that is subtracted from each
  int mels = 0;
  float floor = 0.0f;
  float log_scale = 1.0f;
  std::vector<float> weight;           // of each sample of a frame
  std::vector<int> begin, end, offset; // bins of each mel, and where its weights are
  std::vector<float> mel;

  explicit FeatureConfig(const Container& file);

 private:
  void read_stft(const Container& file, const Json& told);
  void read_kaldi(const Json& told);
  // matrix: [transform / 2 + 1][mels]
  void set_filters(const std::vector<float>& matrix);
};

// The frames of one recording, exactly those of the whole, however its samples are divided.
class FeatureStream {
 public:
  explicit FeatureStream(std::shared_ptr<const FeatureConfig> config);
  // Appends the frames [mels] that the samples complete to `frames`.
  void push(const float* samples, size_t count, std::vector<float>& frames);
  void finish(std::vector<float>& frames);
  void reset();

 private:
  void complete(std::vector<float>& frames);
  std::vector<float> mirrored_whole() const;
  void window(const float* samples, int lane);
  void compute(const float* const* starts, int count, float* out);

  std::shared_ptr<const FeatureConfig> config_;
  Fourier fourier_;
  std::vector<float> samples_;  // from the first sample of the next frame on
  std::vector<float> windowed_, power_, mel_;
  size_t returned_ = 0;  // frames at the front of samples_ that are out already
  bool started_ = false;
};

}  // namespace omnisparse
