#include "front_end.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "kernels/table.h"

namespace omnisparse {

namespace {

constexpr int kGroups = 4;  // of eight lanes: as many as a tile has

int up8(int x) { return (x + 7) / 8 * 8; }

// Eight floats; of a constant size, so that it is two instructions and no call.
inline void copy8(const float* from, float* to) { std::memcpy(to, from, 8 * sizeof(float)); }

// Times of one remainder among `frames`, of so many remainders.
int per_phase(int frames, int phases) { return (frames + phases - 1) / phases; }

// Eight frames more than the times: a tap begins up to so many later.
int length_for(int frames, int phases) { return up8(per_phase(frames, phases)) + 8; }

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
  for (size_t i = convs_.size(); i-- > 0;) {
    convs_[i].phase_stride = later;
    later *= convs_[i].stride[0];
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
  std::fill_n(x.data, x.size(), 0.0f);
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

void FrontEnd::eight(const float* rows, int count, const Tiles& x, int lane,
                     Context& context) const {
  Scope scope(*context.scratch);
  // feature frames as a plane of one channel; what is beyond the last is zero
  Plane plane{nullptr, features_, stride_, length_for(count, stride_)};
  const size_t size = static_cast<size_t>(features_) * stride_ * plane.length;
  plane.data = context.scratch->take<float>(size);
  std::fill_n(plane.data, size, 0.0f);
  for (int t = 0; t < count; ++t)
    for (int f = 0; f < features_; ++f)
      plane.at(0, f, t % stride_)[t / stride_] = rows[static_cast<size_t>(t) * features_ + f];
  int times = count;
  for (size_t i = 0; i < convs_.size(); ++i) {
    const Conv& conv = convs_[i];
    times = (times - conv.kernel[0]) / conv.stride[0] + 1;
    Plane next{nullptr, conv.bins, conv.phase_stride, length_for(times, conv.phase_stride)};
    next.data = context.scratch->take<float>(static_cast<size_t>(conv.channels) * next.bins *
                                             next.phases * next.length);
    convolve(conv, plane, times, next, context);
    // what the lanes beyond the last frame see of the next eight times, which are not computed
    const int computed = next.length - 8;
    if (i + 1 < convs_.size()) {
      const Conv& later = convs_[i + 1];
      const int then = (times - later.kernel[0]) / later.stride[0] + 1;
      const int reach = up8(per_phase(then, later.phase_stride)) + later.kernel[0] / next.phases;
      const int rows = conv.channels * next.bins * next.phases;
      for (int row = 0; reach > computed && row < rows; ++row)
        std::fill_n(next.data + static_cast<size_t>(row) * next.length + computed, 8, 0.0f);
    }
    plane = next;
  }
  for (int row = 0; row < x.channels; ++row)  // a channel's bins one after the other
    copy8(plane.data + static_cast<size_t>(row) * plane.length,
          x.data + static_cast<size_t>(row) * x.width + lane);
}

void FrontEnd::convolve(const Conv& conv, const Plane& in, int frames, const Plane& out,
                        Context& context) const {
  const int eights = up8(per_phase(frames, out.phases)) / 8;
  const int inputs = conv.linear.inputs();
  const int channels = inputs / (conv.kernel[0] * conv.kernel[1]);
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
          *offset++ = (c * in.bins + kf) * in.phases * in.length + at(kt);
    // groups of eight frames of one bin, four to a tile
    const int groups = conv.bins * eights;
    for (int begin = 0; begin < groups; begin += kGroups) {
      Scope one(*context.scratch);
      const int some = std::min(kGroups, groups - begin);
      const int width = some == 1 ? 8 : some == 2 ? 16 : 32;
      const Tiles y = new_tiles(conv.channels, width, width, context);
      alignas(64) float most[8 * kGroups] = {};
      Window window{{}, offsets, most};
      for (int g = 0; g < kGroups; ++g) {  // the last one again where there are no more
        const int number = std::min(begin + g, groups - 1);
        const int place = conv.stride[1] * (number / eights) * in.phases * in.length +
                          number % eights * 8;
        window.eights[g] = in.data + place;
        for (int kt = 0; largest != nullptr && kt < conv.kernel[0]; ++kt)
          kernels().largest(largest + place + at(kt), conv.kernel[1],
                            static_cast<long>(in.phases) * in.length, 8, most + 8 * g);
      }
      conv.linear.run(window, y, Epilogue::kRelu, 0.0f, context);
      for (int c = 0; c < conv.channels; ++c)
        for (int g = 0; g < some; ++g)
          copy8(y.data + static_cast<size_t>(c) * width + 8 * g,
                out.at(c, (begin + g) / eights, phase) + (begin + g) % eights * 8);
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
