#include "features.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"

namespace omnisparse {

namespace {
constexpr int kLanes = 8;  // frames transformed together
constexpr double kPi = 3.14159265358979323846;
}  // namespace

FeatureConfig::FeatureConfig(const Container& file) {
  const Json& told = file.model().at("features");
  sample_rate = file.model().bounded("sample_rate", 1000, 192000);
  transform = told.bounded("n_fft", 4, 1 << 16);
  mels = told.bounded("n_mels", 1, 1024);
  const std::string& kind = told.at("kind").string();
  if (kind == "stft")
    read_stft(file, told);
  else if (kind == "kaldi")
    read_kaldi(told);
  else
    throw Error("The model's features are of the kind " + kind +
                ", which this program cannot compute: install a newer one.");
}

void FeatureConfig::read_stft(const Container& file, const Json& told) {
  length = transform;
  hop = told.bounded("hop_length", 1, 1 << 16);
  const int inside = told.bounded("win_length", 1, transform);
  if (told.at("window").string() != "hann" || told.at("normalized").boolean())
    throw Error("The model's features have a window that this program cannot compute.");
  before = behind = told.at("center").boolean() ? transform / 2 : 0;
  shortest = before != 0 ? before + 1 : length;
  floor = static_cast<float>(told.at("floor").number());
  const Json& base = told.at("log_base");
  if (!base.is_null()) log_scale = static_cast<float>(1.0 / std::log(base.number()));
  // PyTorch's: periodic, and zeros on both sides up to the transform's size
  weight.assign(length, 0.0f);
  const int left = (length - inside) / 2;
  for (int i = 0; i < inside; ++i)
    weight[left + i] = static_cast<float>(0.5 - 0.5 * std::cos(2 * kPi * i / inside));
  const size_t bins = static_cast<size_t>(transform) / 2 + 1;
  const WeightView filters = file.matrix(told.at("mel").string(), bins, mels);
  if (filters.scale != nullptr)
    throw Error("The model's mel filters are int8, which this program cannot compute with.");
  set_filters(numbers_of(filters));
}

// Kaldi's compute-fbank-feats with --snip-edges=false and no dither.
void FeatureConfig::read_kaldi(const Json& told) {
  length = told.bounded("frame_length", 2, transform);
  hop = told.bounded("frame_shift", 1, length);
  if (told.at("window").string() != "povey")
    throw Error("The model's features have a window that this program cannot compute.");
  // frame i is centred at sample (i + 1/2) hop, and the last whose centre lies inside is there
  before = (length - hop) / 2;
  behind = length - before - hop / 2;
  about = false;
  shortest = std::max(before, 1);
  centred = true;
  emphasis = static_cast<float>(told.at("preemphasis").number());
  floor = std::numeric_limits<float>::epsilon();
  for (int i = 0; i < length; ++i)
    weight.push_back(
        static_cast<float>(std::pow(0.5 - 0.5 * std::cos(2 * kPi * i / (length - 1)), 0.85)));
  const double nyquist = 0.5 * sample_rate, high = told.at("high").number();
  const auto mel_of = [](double hertz) { return 1127.0 * std::log(1.0 + hertz / 700.0); };
  const double lowest = mel_of(told.at("low").number());
  const double step = (mel_of(high > 0 ? high : nyquist + high) - lowest) / (mels + 1);
  std::vector<float> matrix(static_cast<size_t>(transform / 2 + 1) * mels, 0.0f);
  for (int k = 0; k < transform / 2; ++k) {
    const double place = (mel_of(k * static_cast<double>(sample_rate) / transform) - lowest) / step;
    for (int m = 0; m < mels; ++m)
      matrix[static_cast<size_t>(k) * mels + m] =
          static_cast<float>(std::max(0.0, std::min(place - m, m + 2 - place)));
  }
  set_filters(matrix);
}

void FeatureConfig::set_filters(const std::vector<float>& matrix) {
  const int bins = transform / 2 + 1;
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
    : config_(std::move(config)), fourier_(config_->transform) {
  windowed_.assign(static_cast<size_t>(config_->transform) * kLanes, 0.0f);
  power_.resize(static_cast<size_t>(config_->transform / 2 + 1) * kLanes);
  mel_.resize(static_cast<size_t>(config_->mels) * kLanes);
}

void FeatureStream::reset() {
  samples_.clear();
  returned_ = 0;
  started_ = false;
}

void FeatureStream::push(const float* samples, size_t count, std::vector<float>& frames) {
  samples_.insert(samples_.end(), samples, samples + count);
  if (!started_) {
    if (samples_.size() < static_cast<size_t>(config_->shortest)) return;
    const size_t before = static_cast<size_t>(config_->before);
    samples_.insert(samples_.begin(), before, 0.0f);
    for (size_t i = 0; i < before; ++i)
      samples_[i] = samples_[2 * before - (config_->about ? i : i + 1)];
    started_ = true;
  }
  complete(frames);
}

void FeatureStream::finish(std::vector<float>& frames) {
  if (!started_ && !samples_.empty()) {
    if (config_->about) {  // zeros as far as it takes to mirror the start
      const std::vector<float> zeros(config_->shortest - samples_.size(), 0.0f);
      push(zeros.data(), zeros.size(), frames);
    } else {
      samples_ = mirrored_whole();
      complete(frames);
    }
  }
  if (started_) {
    const size_t end = samples_.size() - (config_->about ? 1 : 0);
    const size_t behind = std::min(static_cast<size_t>(config_->behind), end);
    for (size_t i = 1; i <= behind; ++i) samples_.push_back(samples_[end - i]);
    complete(frames);
  }
  reset();
}

// The frames of a recording that is too short to be mirrored once: again and again.
std::vector<float> FeatureStream::mirrored_whole() const {
  const long count = static_cast<long>(samples_.size()), period = 2 * count;
  const long frames = (count + config_->hop / 2) / config_->hop;
  std::vector<float> whole;
  if (frames == 0) return whole;
  for (long i = 0; i < (frames - 1) * config_->hop + config_->length; ++i) {
    const long place = ((i - config_->before) % period + period) % period;
    whole.push_back(samples_[std::min(place, period - 1 - place)]);
  }
  return whole;
}

void FeatureStream::complete(std::vector<float>& frames) {
  const size_t length = static_cast<size_t>(config_->length);
  const size_t hop = static_cast<size_t>(config_->hop);
  if (samples_.size() < length) return;
  const size_t count = (samples_.size() - length) / hop + 1;
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

// A frame's samples into a lane; what is in the lanes of no frame is not used.
void FeatureStream::window(const float* samples, int lane) {
  const FeatureConfig& config = *config_;
  float mean = 0.0f;
  if (config.centred) {
    double sum = 0.0;
    for (int i = 0; i < config.length; ++i) sum += static_cast<double>(samples[i]);
    mean = static_cast<float>(sum / config.length);
  }
  float before = samples[0] - mean;
  for (int i = 0; i < config.length; ++i) {
    const float x = samples[i] - mean;
    windowed_[static_cast<size_t>(i) * kLanes + lane] =
        (x - config.emphasis * before) * config.weight[i];
    before = x;
  }
}

void FeatureStream::compute(const float* const* starts, int count, float* out) {
  const FeatureConfig& config = *config_;
  for (int lane = 0; lane < count; ++lane) window(starts[lane], lane);
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
