// What the E-Branchformer has beside attention and feed-forward modules.
#include <algorithm>

#include "branch.h"
#include "error.h"

namespace omnisparse {

namespace {

// A number for each channel, the same of all frames.
void add(const std::vector<float>& numbers, const Into& into) {
  for (int t = 0; t < into.y.count(); ++t) {
    float* row = into.y.tile(t);
    for (const float number : numbers)
      for (int lane = 0; lane < into.y.width; ++lane) *row++ += into.factor * number;
  }
}

// ESPnet's ConvolutionalGatingMLP: one half of the channels is gated by the other one.
class Gating : public Branch {
 public:
  Gating(const Container& file, const Json& told, const BranchOptions& options)
      : norm_(read_norm(file, told.at("norm").string(), options.epsilon, options.width)),
        activation_(activation_of(told.at("activation").string())),
        gate_(activation_of(told.at("gate_activation").string())),
        kernel_(told.bounded("kernel", 1, 1024)) {
    const std::string module = told.at("module").string() + ".", unit = module + "csgu.";
    in_ = read_linear(file, module + "channel_proj1.0.weight", module + "channel_proj1.0.bias", 0,
                      options.width);
    const int half = in_.outputs() / 2;
    if (half == 0 || in_.outputs() % 2 != 0)
      throw Error("The gating " + module + " has channels that are no two halves.");
    inner_ = read_norm(file, unit + "norm", static_cast<float>(told.at("norm_eps").number()),
                       half);
    weight_ = file.floats(unit + "conv.weight", static_cast<size_t>(half) * kernel_);
    bias_ = file.floats(unit + "conv.bias", half);
    linear_ = told.at("linear").boolean();
    if (linear_) mixing_ = read_linear(file, unit + "linear.weight", unit + "linear.bias", half, half);
    out_ = read_linear(file, module + "channel_proj2.weight", module + "channel_proj2.bias",
                       options.width, half);
  }

  bool needs_all() const override { return true; }

  void run(const Tiles& x, const Into& into, const Sight&, Past*,
           Context& context) const override {
    const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
    const Tiles hidden = new_tiles(in_.outputs(), x.frames, x.width, context);
    norm_.run(x, inside, context);
    in_.run(inside, hidden, epilogue_of(activation_), 0.0f, context);
    const int half = in_.outputs() / 2;
    const Tiles gated = hidden.slice(0, half);
    Tiles gate = hidden.slice(half, half);
    inner_.run(gate, gate, context);
    depthwise(gate, weight_.data(), bias_.data(), kernel_, (kernel_ - 1) / 2, nullptr, false,
              gate, context);
    if (linear_) {
      const Tiles mixed = new_tiles(half, x.frames, x.width, context);
      mixing_.run(gate, mixed, epilogue_of(gate_), 0.0f, context);
      gate = mixed;
    } else {
      activate(gate, gate_, context);
    }
    multiply(gated, gate, context);
    out_.run(gated, into.y, into.epilogue, into.factor, context);
  }

 private:
  Norm norm_, inner_;
  Activation activation_, gate_;
  int kernel_;
  bool linear_;
  Linear in_, mixing_, out_;
  std::vector<float> weight_, bias_;
};

// Branches side by side, on the same input: their outputs, one after the other in channels,
// and a depthwise convolution of them, go through a projection.
class Merge : public Branch {
 public:
  Merge(const Container& file, const Json& told, const BranchOptions& options)
      : width_(options.width) {
    for (const Json& side : told.at("sides").array()) {
      if (side.at("kind").string() == "merge") throw Error("The model has a merge in a merge.");
      sides_.push_back(read_branch(file, side, options));
    }
    const Json& projection = told.at("projection");
    if (sides_.empty()) {
      bias_ = file.floats(projection.at("bias").string(), width_);
      return;
    }
    if (sides_.size() > 16) throw Error("The model has a merge of too many branches.");
    const size_t channels = sides_.size() * width_;
    projection_ = read_linear(file, projection, width_, channels);
    kernel_ = told.bounded("kernel", 1, 1024);
    weight_ = file.floats(told.at("fusion").at("weight").string(), channels * kernel_);
    bias_ = file.floats(told.at("fusion").at("bias").string(), channels);
    // the sum of the outputs and their convolution is a convolution too
    for (size_t c = 0; c < channels; ++c) weight_[c * kernel_ + (kernel_ - 1) / 2] += 1.0f;
  }

  void run(const Tiles& x, const Into& into, const Sight& sight, Past*,
           Context& context) const override {
    if (sides_.empty()) {
      add(bias_, into);
      return;
    }
    const int count = static_cast<int>(sides_.size());
    const Tiles both = new_tiles(count * width_, x.frames, x.width, context);
    for (int side = 0; side < count; ++side) {
      Scope scope(*context.scratch);
      sides_[side]->run(x, {both.slice(side * width_, width_)}, sight, nullptr, context);
    }
    depthwise(both, weight_.data(), bias_.data(), kernel_, (kernel_ - 1) / 2, nullptr, false,
              both, context);
    projection_.run(both, into.y, into.epilogue, into.factor, context);
  }

  bool needs_all() const override { return true; }

  void project(const Tiles& x, Positions& positions, Context& context) const override {
    for (const auto& side : sides_) side->project(x, positions, context);
  }

 private:
  int width_, kernel_ = 1;
  std::vector<std::unique_ptr<const Branch>> sides_;
  std::vector<float> weight_, bias_;  // without sides: the projection's bias
  Linear projection_;
};

}  // namespace

std::unique_ptr<const Branch> read_gating(const Container& file, const Json& told,
                                          const BranchOptions& options) {
  return std::make_unique<Gating>(file, told, options);
}

std::unique_ptr<const Branch> read_merge(const Container& file, const Json& told,
                                         const BranchOptions& options) {
  return std::make_unique<Merge>(file, told, options);
}

}  // namespace omnisparse
