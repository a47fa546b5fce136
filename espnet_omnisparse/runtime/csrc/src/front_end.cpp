#include "front_end.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "kernels/table.h"

namespace omnisparse {

namespace {

constexpr int kGroups = 4;  // of eight lanes: as many as a tile has

int up8(int x) { return (x + 7) / 8 * 8; }

// Times of one remainder among `times`, of so many remainders.
int of_phase(int times, int phase, int phases) { return (times - phase + phases - 1) / phases; }

}  // namespace

FrontEnd::FrontEnd(const Container& file, int features) : features_(features) {
  const Json& told = file.model().at("front_end");
  if (told.at("kind").string() != "conv2d")
    throw Error("The model's front end is of the kind " + told.at("kind").string() +
                ", which this program has not: install a newer one.");
  scale_ = static_cast<float>(told.at("scale").number());
  int bins = features, channels = 1;
  const auto& convs = told.at("convs").array();
  if (convs.empty() || convs.size() > 8) throw Error("The model's front end has no convolution.");
  for (const Json& one : convs) {
    Conv conv;
    for (int axis = 0; axis < 2; ++axis) {
      const long kernel = one.at("kernel").array().at(axis).whole();
      const long stride = one.at("stride").array().at(axis).whole();
      if (kernel < 1 || kernel > 9 || stride < 1 || stride > 8)
        throw Error("The model's front end has a convolution of an impossible size.");
      conv.kernel[axis] = static_cast<int>(kernel);
      conv.stride[axis] = static_cast<int>(stride);
    }
    if (bins < conv.kernel[1]) throw Error("The model's front end needs more features.");
    const int window = channels * conv.kernel[0] * conv.kernel[1];
    const WeightView weight = file.matrix(one.at("weight").string(), 0, window);
    conv.channels = channels = weight.rows;
    conv.bins = bins = (bins - conv.kernel[1]) / conv.stride[1] + 1;
    std::vector<float> bias;
    if (!one.at("bias").is_null()) bias = file.floats(one.at("bias").string(), channels);
    conv.linear = Linear({weight}, {bias.empty() ? nullptr : bias.data()});
    field_ += (conv.kernel[0] - 1) * stride_;
    stride_ *= conv.stride[0];
    convs_.push_back(std::move(conv));
  }
  if (stride_ > 64) throw Error("The model's front end has strides that are impossible.");
  int later = 1;
  int times = 8;  // as many encoder frames are computed together
  for (size_t i = convs_.size(); i-- > 0;) {
    Conv& conv = convs_[i];
    conv.phases = later;
    conv.times = times;
    later *= conv.stride[0];
    times = (times - 1) * conv.stride[0] + conv.kernel[0];
  }
  const Json& output = told.at("output");
  if (output.is_null())
    throw Error("The model's front end has no output layer, which this program needs.");
  const WeightView weight = file.matrix(output.at("weight").string(), 0,
                                        static_cast<size_t>(channels) * bins);
  std::vector<float> bias;
  if (!output.at("bias").is_null()) bias = file.floats(output.at("bias").string(), weight.rows);
  output_ = Linear({weight}, {bias.empty() ? nullptr : bias.data()});
}

void FrontEnd::run(const float* rows, int count, const Tiles& out, Context& context) const {
  for (int tile = 0; tile < out.count(); ++tile) {
    const int first = tile * out.width;
    const int frames = std::min(out.width, out.frames - first);
    strip(rows + static_cast<size_t>(first) * stride_ * features_,
          std::min(count - first * stride_, (frames - 1) * stride_ + field_), frames, out, tile,
          context);
  }
}

void FrontEnd::strip(const float* rows, int count, int frames, const Tiles& out, int tile,
                     Context& context) const {
  Scope scope(*context.scratch);
  const Conv& last = convs_.back();
  const Tiles x = new_tiles(last.channels * last.bins, frames, out.width, context);
  if (up8(frames) < x.width) std::fill_n(x.data, x.size(), 0.0f);
  // eight frames at a time: what lies between two convolutions stays in the cache
  for (int first = 0; first < frames; first += 8) {
    const int some = std::min(8, frames - first);
    eight(rows + static_cast<size_t>(first) * stride_ * features_,
          std::min(count - first * stride_, (some - 1) * stride_ + field_), x, first, context);
  }
  const Tiles y{out.tile(tile), out.channels, frames, out.width};
  output_.run(x, y, Epilogue::kStore, 0.0f, context);
  if (scale_ != 1.0f)
    for (size_t i = 0; i < y.size(); ++i) y.data[i] *= scale_;
}

int FrontEnd::lanes(const Conv& conv, int phase) {
  return up8(of_phase(conv.times, phase, conv.phases));
}

int FrontEnd::reach(const Conv& conv, int phases, int phase) {
  int far = 0;
  for (int of = 0; of < conv.phases; ++of)
    for (int kt = 0; kt < conv.kernel[0]; ++kt) {
      const int time = conv.stride[0] * of + kt;
      if (time % phases == phase) far = std::max(far, lanes(conv, of) + time / phases);
    }
  return far;
}

void FrontEnd::eight(const float* rows, int count, const Tiles& x, int lane,
                     Context& context) const {
  Scope scope(*context.scratch);
  // feature frames as a plane of one channel; what is beyond the last is zero
  int length = 0;
  for (int phase = 0; phase < stride_; ++phase)
    length = std::max({length, reach(convs_[0], stride_, phase), of_phase(count, phase, stride_)});
  Plane plane{nullptr, features_, stride_, up8(length)};
  const size_t size = static_cast<size_t>(features_) * stride_ * plane.length;
  plane.data = context.scratch->take<float>(size);
  std::fill_n(plane.data, size, 0.0f);
  for (int t = 0; t < count; ++t)
    for (int f = 0; f < features_; ++f)
      plane.at(0, f, t % stride_)[t / stride_] = rows[static_cast<size_t>(t) * features_ + f];
  for (size_t i = 0; i + 1 < convs_.size(); ++i) {
    const Conv &conv = convs_[i], &later = convs_[i + 1];
    length = 0;
    for (int phase = 0; phase < conv.phases; ++phase)
      length = std::max({length, lanes(conv, phase), reach(later, conv.phases, phase)});
    Plane next{nullptr, conv.bins, conv.phases, up8(length)};
    next.data = context.scratch->take<float>(static_cast<size_t>(conv.channels) * next.bins *
                                             next.phases * next.length);
    convolve(conv, plane, next, context);
    // later lanes, of no frame, see what is not computed
    for (int phase = 0; phase < conv.phases; ++phase) {
      const int from = lanes(conv, phase), to = reach(later, conv.phases, phase);
      for (int c = 0; from < to && c < conv.channels; ++c)
        for (int bin = 0; bin < conv.bins; ++bin)
          std::fill(next.at(c, bin, phase) + from, next.at(c, bin, phase) + to, 0.0f);
    }
    plane = next;
  }
  // a channel's bins one after the other
  convolve(convs_.back(), plane, {x.data + lane, convs_.back().bins, 1, x.width}, context);
}

void FrontEnd::convolve(const Conv& conv, const Plane& in, const Plane& out,
                        Context& context) const {
  const int inputs = conv.linear.inputs();
  const int channels = inputs / (conv.kernel[0] * conv.kernel[1]);
  const int row = in.phases * in.length;  // from bin to bin
  Scope scope(*context.scratch);
  const float* largest = conv.linear.int8() ? largest_of(in, channels, context) : nullptr;
  int32_t* offsets = context.scratch->take<int32_t>(inputs);
  for (int phase = 0; phase < out.phases; ++phase) {
    // where a window's inputs lie, from the place of its first bin and time on
    const auto at = [&](int kt) {
      const int time = conv.stride[0] * phase + kt;
      return time % in.phases * in.length + time / in.phases;
    };
    int32_t* offset = offsets;
    for (int c = 0; c < channels; ++c)
      for (int kt = 0; kt < conv.kernel[0]; ++kt)
        for (int kf = 0; kf < conv.kernel[1]; ++kf)
          *offset++ = (c * in.bins + kf) * row + at(kt);
    // groups of eight times of one bin, four to a tile
    const int eights = lanes(conv, phase) / 8, groups = conv.bins * eights;
    for (int begin = 0; begin < groups; begin += kGroups) {
      alignas(64) float most[8 * kGroups] = {};
      Window window{{}, offsets, most};
      Places places{{}, std::min(kGroups, groups - begin),
                    static_cast<long>(out.bins) * out.phases * out.length};
      for (int g = 0; g < kGroups; ++g) {  // the last one again where there are no more
        const int number = std::min(begin + g, groups - 1);
        const int bin = number / eights, first = number % eights * 8;
        const int place = conv.stride[1] * bin * row + first;
        window.eights[g] = in.data + place;
        places.eights[g] = out.at(0, bin, phase) + first;
        for (int kt = 0; largest != nullptr && kt < conv.kernel[0]; ++kt)
          kernels().largest(largest + place + at(kt), conv.kernel[1], row, 8, most + 8 * g);
      }
      conv.linear.run(window, places, Epilogue::kRelu, context);
    }
  }
}

const float* FrontEnd::largest_of(const Plane& in, int channels, Context& context) const {
  const int size = in.bins * in.phases * in.length;
  float* largest = context.scratch->take<float>(size);
  std::fill_n(largest, size, 0.0f);
  for (int c = 0; c < channels; ++c)
    kernels().largest(in.data + static_cast<size_t>(c) * size, 1, 0, size, largest);
  return largest;
}

}  // namespace omnisparse
