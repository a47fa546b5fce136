// The branches that every encoder has, and the Conformer's.
#include "branch.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace omnisparse {

namespace {

class FeedForward : public Branch {
 public:
  FeedForward(const Container& file, const Json& told, const BranchOptions& options)
      : norm_(read_norm(file, told.at("norm").string(), options.epsilon, options.width)),
        activation_(activation_of(told.at("activation").string())) {
    const std::string module = told.at("module").string() + ".";
    in_ = read_linear(file, module + "w_1.weight", module + "w_1.bias", 0, options.width);
    out_ = read_linear(file, module + "w_2.weight", module + "w_2.bias", options.width,
                       in_.outputs());
  }

  void run(const Tiles& x, const Into& into, const Sight&, Past*,
           Context& context) const override {
    const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
    const Tiles hidden = new_tiles(in_.outputs(), x.frames, x.width, context);
    norm_.run(x, inside, context);
    in_.run(inside, hidden, epilogue_of(activation_), 0.0f, context);
    out_.run(hidden, into.y, into.epilogue, into.factor, context);
  }

 private:
  Norm norm_;
  Activation activation_;
  Linear in_, out_;
};

// The Conformer's. A BatchNorm is folded into the weights.
class Convolution : public Branch {
 public:
  Convolution(const Container& file, const Json& told, const BranchOptions& options)
      : norm_(read_norm(file, told.at("norm").string(), options.epsilon, options.width)),
        activation_(activation_of(told.at("activation").string())),
        kernel_(told.bounded("kernel", 1, 1024)),
        before_(options.causal ? kernel_ - 1 : (kernel_ - 1) / 2),
        layer_norm_(told.at("conv_norm").string() == "layer_norm") {
    const std::string module = told.at("module").string() + ".";
    in_ = read_linear(file, module + "pointwise_conv1.weight", module + "pointwise_conv1.bias", 0,
                      options.width, true);
    const int channels = in_.outputs();
    out_ = read_linear(file, module + "pointwise_conv2.weight", module + "pointwise_conv2.bias",
                       options.width, channels);
    weight_ = file.floats(module + "depthwise_conv.weight",
                          static_cast<size_t>(channels) * kernel_);
    bias_.assign(channels, 0.0f);
    if (file.has(module + "depthwise_conv.bias"))
      bias_ = file.floats(module + "depthwise_conv.bias", channels);
    const float epsilon = static_cast<float>(told.at("norm_eps").number());
    if (layer_norm_) {
      inner_ = read_norm(file, module + "norm.channels", epsilon, channels);
      return;
    }
    const Norm batch = read_norm(file, module + "norm", epsilon, channels);
    const auto mean = file.floats(module + "norm.running_mean", channels);
    const auto variance = file.floats(module + "norm.running_var", channels);
    for (int c = 0; c < channels; ++c) {
      const float scale = batch.gamma[c] / std::sqrt(variance[c] + epsilon);
      for (int k = 0; k < kernel_; ++k) weight_[static_cast<size_t>(c) * kernel_ + k] *= scale;
      bias_[c] = (bias_[c] - mean[c]) * scale + batch.beta[c];
    }
  }

  void run(const Tiles& x, const Into& into, const Sight&, Past* past,
           Context& context) const override {
    const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
    const Tiles hidden = new_tiles(in_.outputs(), x.frames, x.width, context);
    norm_.run(x, inside, context);
    in_.run(inside, hidden, Epilogue::kGate, 0.0f, context);
    depthwise(hidden, weight_.data(), bias_.data(), kernel_, before_,
              past != nullptr ? past->inputs.data() : nullptr, past != nullptr, hidden, context);
    if (layer_norm_) inner_.run(hidden, hidden, context);
    activate(hidden, activation_, context);
    out_.run(hidden, into.y, into.epilogue, into.factor, context);
  }

  Past past(const Chunk&) const override {
    Past past;
    past.inputs.assign(static_cast<size_t>(in_.outputs()) * (kernel_ - 1), 0.0f);
    return past;
  }

 private:
  Norm norm_;
  Activation activation_;
  int kernel_, before_;
  bool layer_norm_;
  Norm inner_;
  Linear in_, out_;
  std::vector<float> weight_, bias_;
};

}  // namespace

void Past::clear() {
  frames = 0;
  std::fill(inputs.begin(), inputs.end(), 0.0f);
}

std::unique_ptr<const Branch> read_branch(const Container& file, const Json& told,
                                          const BranchOptions& options) {
  const std::string& kind = told.at("kind").string();
  if (kind == "ffn") return std::make_unique<FeedForward>(file, told, options);
  if (kind == "mhsa") return read_attention(file, told, options);
  if (kind == "conv") return std::make_unique<Convolution>(file, told, options);
  if (kind == "cgmlp") return read_gating(file, told, options);
  if (kind == "merge") return read_merge(file, told, options);
  throw Error("The model has a branch of the kind " + kind +
              ", which this program has not: install a newer one.");
}

}  // namespace omnisparse
