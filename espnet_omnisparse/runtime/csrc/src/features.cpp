#include "features.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace omnisparse {

namespace {
constexpr int kLanes = 8;  // frames transformed together
constexpr double kPi = 3.14159265358979323846;
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
  for (int i = 0; i < half; ++i) {
    cosine_.push_back(static_cast<float>(std::cos(2 * kPi * i / size)));
    sine_.push_back(static_cast<float>(std::sin(2 * kPi * i / size)));
  }
  re_.resize(static_cast<size_t>(half) * kLanes);
  im_.resize(re_.size());
}

void Fourier::halves(float* re, float* im) const {
  const int points = size_ / 2;
  for (int length = 2; length <= points; length *= 2) {
    const int step = size_ / length, half = length / 2;
    for (int begin = 0; begin < points; begin += length) {
      for (int k = 0; k < half; ++k) {
        const float c = cosine_[k * step], s = -sine_[k * step];
        float* a_re = re + (begin + k) * kLanes;
        float* a_im = im + (begin + k) * kLanes;
        float* b_re = a_re + half * kLanes;
        float* b_im = a_im + half * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) {
          const float t_re = b_re[lane] * c - b_im[lane] * s;
          const float t_im = b_re[lane] * s + b_im[lane] * c;
          b_re[lane] = a_re[lane] - t_re;
          b_im[lane] = a_im[lane] - t_im;
          a_re[lane] += t_re;
          a_im[lane] += t_im;
        }
      }
    }
  }
}

void Fourier::power(const float* x, float* power) {
  // even and odd samples as one complex signal of half the length
  const int half = size_ / 2;
  for (int i = 0; i < half; ++i) {
    const int to = reversed_[i];
    std::copy_n(x + static_cast<size_t>(2 * i) * kLanes, kLanes, &re_[static_cast<size_t>(to) * kLanes]);
    std::copy_n(x + static_cast<size_t>(2 * i + 1) * kLanes, kLanes,
                &im_[static_cast<size_t>(to) * kLanes]);
  }
  halves(re_.data(), im_.data());
  for (int k = 0; k <= half; ++k) {
    const float* z_re = &re_[static_cast<size_t>(k % half) * kLanes];
    const float* z_im = &im_[static_cast<size_t>(k % half) * kLanes];
    const float* w_re = &re_[static_cast<size_t>((half - k) % half) * kLanes];
    const float* w_im = &im_[static_cast<size_t>((half - k) % half) * kLanes];
    const float c = k < half ? cosine_[k] : -1.0f, s = k < half ? sine_[k] : 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) {
      const float even_re = 0.5f * (z_re[lane] + w_re[lane]);
      const float even_im = 0.5f * (z_im[lane] - w_im[lane]);
      const float odd_re = 0.5f * (z_im[lane] + w_im[lane]);
      const float odd_im = 0.5f * (w_re[lane] - z_re[lane]);
      const float re = even_re + c * odd_re + s * odd_im;
      const float im = even_im + c * odd_im - s * odd_re;
      power[static_cast<size_t>(k) * kLanes + lane] = re * re + im * im;
    }
  }
}

FeatureConfig::FeatureConfig(const Container& file) {
  const Json& told = file.model().at("features");
  if (told.at("kind").string() != "stft")
    throw Error("The model's features are of the kind " + told.at("kind").string() +
                ", which this program cannot compute: install a newer one.");
  sample_rate = file.model().bounded("sample_rate", 1000, 192000);
  window = told.bounded("n_fft", 4, 1 << 16);
  hop = told.bounded("hop_length", 1, 1 << 16);
  mels = told.bounded("n_mels", 1, 1024);
  const int length = told.bounded("win_length", 1, window);
  if (told.at("window").string() != "hann" || told.at("normalized").boolean())
    throw Error("The model's features have a window that this program cannot compute.");
  reflected = told.at("center").boolean() ? window / 2 : 0;
  floor = static_cast<float>(told.at("floor").number());
  const Json& base = told.at("log_base");
  if (!base.is_null()) log_scale = static_cast<float>(1.0 / std::log(base.number()));
  // PyTorch's: periodic, and zeros on both sides up to the transform's size
  weight.assign(window, 0.0f);
  const int left = (window - length) / 2;
  for (int i = 0; i < length; ++i)
    weight[left + i] = static_cast<float>(0.5 - 0.5 * std::cos(2 * kPi * i / length));
  const int bins = window / 2 + 1;
  const auto matrix =
      file.floats(told.at("mel").string(), static_cast<size_t>(bins) * mels);
  for (int m = 0; m < mels; ++m) {
    int first = bins, last = 0;
    for (int k = 0; k < bins; ++k) {
      if (matrix[static_cast<size_t>(k) * mels + m] == 0.0f) continue;
      first = std::min(first, k);
      last = k + 1;
    }
    begin.push_back(std::min(first, last));
    end.push_back(last);
    offset.push_back(static_cast<int>(mel.size()));
    for (int k = begin.back(); k < last; ++k)
      mel.push_back(matrix[static_cast<size_t>(k) * mels + m]);
  }
}

FeatureStream::FeatureStream(std::shared_ptr<const FeatureConfig> config)
    : config_(std::move(config)), fourier_(config_->window) {
  windowed_.resize(static_cast<size_t>(config_->window) * kLanes);
  power_.resize(static_cast<size_t>(config_->window / 2 + 1) * kLanes);
  mel_.resize(static_cast<size_t>(config_->mels) * kLanes);
}

void FeatureStream::reset() {
  samples_.clear();
  returned_ = 0;
  started_ = false;
}

void FeatureStream::push(const float* samples, size_t count, std::vector<float>& frames) {
  samples_.insert(samples_.end(), samples, samples + count);
  const size_t reflected = static_cast<size_t>(config_->reflected);
  if (!started_) {
    // mirroring n samples takes one more, about which they are mirrored
    const size_t shortest = reflected != 0 ? reflected + 1 : static_cast<size_t>(config_->window);
    if (samples_.size() < shortest) return;
    samples_.insert(samples_.begin(), reflected, 0.0f);
    for (size_t i = 0; i < reflected; ++i) samples_[i] = samples_[2 * reflected - i];
    started_ = true;
  }
  complete(frames);
}

void FeatureStream::finish(std::vector<float>& frames) {
  const size_t reflected = static_cast<size_t>(config_->reflected);
  if (!started_ && !samples_.empty()) {  // too short to be mirrored: zeros as far as needed
    const size_t shortest = reflected != 0 ? reflected + 1 : static_cast<size_t>(config_->window);
    const std::vector<float> zeros(shortest - samples_.size(), 0.0f);
    push(zeros.data(), zeros.size(), frames);
  }
  if (started_ && reflected != 0) {
    const size_t last = samples_.size() - 1;
    for (size_t i = 1; i <= reflected; ++i) samples_.push_back(samples_[last - i]);
    complete(frames);
  }
  reset();
}

void FeatureStream::complete(std::vector<float>& frames) {
  const size_t window = static_cast<size_t>(config_->window);
  const size_t hop = static_cast<size_t>(config_->hop);
  if (samples_.size() < window) return;
  const size_t count = (samples_.size() - window) / hop + 1;
  if (count <= returned_) return;
  const size_t mels = static_cast<size_t>(config_->mels), before = frames.size();
  frames.resize(before + (count - returned_) * mels);
  float* out = frames.data() + before;
  for (size_t i = returned_; i < count; i += kLanes) {
    const int some = static_cast<int>(std::min<size_t>(kLanes, count - i));
    const float* starts[kLanes];
    for (int lane = 0; lane < some; ++lane) starts[lane] = samples_.data() + (i + lane) * hop;
    compute(starts, some, out);
    out += static_cast<size_t>(some) * mels;
  }
  // the last frame stays: its samples may be mirrored at the end
  samples_.erase(samples_.begin(), samples_.begin() + static_cast<long>((count - 1) * hop));
  returned_ = 1;
}

void FeatureStream::compute(const float* const* starts, int count, float* out) {
  const FeatureConfig& config = *config_;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < config.window; ++i)
      windowed_[static_cast<size_t>(i) * kLanes + lane] =
          lane < count ? starts[lane][i] * config.weight[i] : 0.0f;
  }
  fourier_.power(windowed_.data(), power_.data());
  for (int m = 0; m < config.mels; ++m) {
    float sum[kLanes] = {};
    const float* weights = config.mel.data() + config.offset[m];
    for (int k = config.begin[m]; k < config.end[m]; ++k) {
      const float* at = power_.data() + static_cast<size_t>(k) * kLanes;
      for (int lane = 0; lane < kLanes; ++lane) sum[lane] += *weights * at[lane];
      ++weights;
    }
    std::copy_n(sum, kLanes, &mel_[static_cast<size_t>(m) * kLanes]);
  }
  log_floor(mel_.data(), mel_.size(), config.floor);
  for (int lane = 0; lane < count; ++lane)
    for (int m = 0; m < config.mels; ++m)
      out[static_cast<size_t>(lane) * config.mels + m] =
          mel_[static_cast<size_t>(m) * kLanes + lane] * config.log_scale;
}

}  // namespace omnisparse
