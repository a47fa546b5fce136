// The convolutional front end: feature frames in, tiles of encoder frames out.
#pragma once

#include <vector>

#include "container.h"

namespace omnisparse {

class FrontEnd {
 public:
  FrontEnd(const Container& file, int features);

  int width() const { return output_.outputs(); }
  // Feature frames per encoder frame, and how many of them one encoder frame sees.
  int stride() const { return stride_; }
  int field() const { return field_; }
  // Encoder frames that so many feature frames make.
  int frames(int features) const {
    return features < field_ ? 0 : (features - field_) / stride_ + 1;
  }

  // rows: [count][features]; out: tiles of `width` channels, of frames(count) frames.
  void run(const float* rows, int count, const Tiles& out, Context& context) const;

 private:
  struct Conv {
    Linear linear;
    int kernel[2], stride[2];  // along time, along the features
    int phases;                // of the times of its output: the product of later strides
    int times;                 // of its output that eight encoder frames need
    int channels, bins;        // of its output
  };
  // Values by channel, feature bin, and time; times of one remainder side by side.
  struct Plane {
    float* data;
    int bins, phases, length;
    float* at(int channel, int bin, int phase) const {
      return data + ((static_cast<size_t>(channel) * bins + bin) * phases + phase) * length;
    }
  };

  void strip(const float* rows, int count, int frames, const Tiles& out, int tile,
             Context& context) const;
  void eight(const float* rows, int count, const Tiles& x, int lane, Context& context) const;
  void convolve(const Conv& conv, const Plane& in, const Plane& out, Context& context) const;
  // Lanes that are computed of the times of one remainder.
  static int lanes(const Conv& conv, int phase);
  // How far a convolution reads into the times of one remainder, of so many, of its input.
  static int reach(const Conv& conv, int phases, int phase);
  // The greatest absolute value among the channels, for every bin and time of a plane.
  const float* largest_of(const Plane& in, int channels, Context& context) const;

  std::vector<Conv> convs_;
  Linear output_;
  int features_, stride_ = 1, field_ = 1;
  float scale_;
};

}  // namespace omnisparse
