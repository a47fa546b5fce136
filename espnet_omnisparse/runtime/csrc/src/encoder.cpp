#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace omnisparse {

namespace {

constexpr int kRoom = 64;  // floats that a vector may read beyond a row

int up(int x, int to) { return (x + to - 1) / to * to; }

}  // namespace

Encoder::Encoder(const Container& file) {
  const Json& told = file.model().at("encoder");
  width_ = told.bounded("width", 1, 1 << 16);
  causal_ = told.at("causal").boolean();
  const std::string& positions = told.at("positions").string();
  relative_ = positions == "relative";
  if (!relative_ && positions != "none")
    throw Error("The model has " + positions +
                " positions, which this program has not: install a newer one.");
  if (!told.at("chunk").is_null()) {
    chunk_.size = told.at("chunk").bounded("size", 1, 1 << 16);
    chunk_.left = told.at("chunk").bounded("left", 0, 1 << 20);
  }
  const float epsilon = static_cast<float>(told.at("norm_eps").number());
  for (const Json& one : told.at("blocks").array()) {
    Block block;
    for (const Json& branch : one.at("branches").array())
      block.branches.push_back(read(file, branch, epsilon));
    block.norm = read_norm(file, one.at("norm").string(), epsilon, width_);
    blocks_.push_back(std::move(block));
  }
  norm_ = read_norm(file, told.at("norm").string(), epsilon, width_);
}

Branch Encoder::read(const Container& file, const Json& told, float epsilon) const {
  Branch branch;
  branch.scale = static_cast<float>(told.at("scale").number());
  branch.norm = read_norm(file, told.at("norm").string(), epsilon, width_);
  const std::string& kind = told.at("kind").string();
  const std::string module = told.at("module").string() + ".";
  if (kind == "ffn") {
    branch.kind = Branch::Kind::kFeedForward;
    branch.activation = activation_of(told.at("activation").string());
    branch.in = read_linear(file, module + "w_1.weight", module + "w_1.bias", 0, width_);
    branch.out = read_linear(file, module + "w_2.weight", module + "w_2.bias", width_,
                             branch.in.outputs());
  } else if (kind == "mhsa") {
    branch.kind = Branch::Kind::kAttention;
    branch.heads = told.bounded("heads", 1, 1024);
    branch.head_width = told.bounded("head_width", 1, 4096);
    const size_t size = static_cast<size_t>(branch.heads) * branch.head_width;
    std::vector<WeightView> weights;
    std::vector<std::vector<float>> biases;
    for (const char* name : {"linear_q", "linear_k", "linear_v"}) {
      weights.push_back(file.matrix(module + name + ".weight", size, width_));
      biases.push_back(file.floats(module + name + ".bias", size));
    }
    branch.in = Linear(weights, {biases[0].data(), biases[1].data(), biases[2].data()});
    branch.out = read_linear(file, module + "linear_out.weight", module + "linear_out.bias",
                             width_, size);
    if (relative_) {
      branch.position = read_linear(file, module + "linear_pos.weight", "", size, width_);
      branch.bias_u = file.floats(module + "pos_bias_u", size);
      branch.bias_v = file.floats(module + "pos_bias_v", size);
    }
  } else if (kind == "conv") {
    branch.kind = Branch::Kind::kConvolution;
    branch.kernel = told.bounded("kernel", 1, 1024);
    branch.activation = activation_of(told.at("activation").string());
    branch.in = read_linear(file, module + "pointwise_conv1.weight",
                            module + "pointwise_conv1.bias", 0, width_, true);
    const int channels = branch.in.outputs();
    branch.out = read_linear(file, module + "pointwise_conv2.weight",
                             module + "pointwise_conv2.bias", width_, channels);
    branch.weight = file.floats(module + "depthwise_conv.weight",
                                static_cast<size_t>(channels) * branch.kernel);
    branch.bias.assign(channels, 0.0f);
    if (file.has(module + "depthwise_conv.bias"))
      branch.bias = file.floats(module + "depthwise_conv.bias", channels);
    const float inner = static_cast<float>(told.at("norm_eps").number());
    branch.layer_norm = told.at("conv_norm").string() == "layer_norm";
    if (branch.layer_norm) {
      branch.inner = read_norm(file, module + "norm.channels", inner, channels);
    } else {
      const Norm batch = read_norm(file, module + "norm", inner, channels);
      const auto mean = file.floats(module + "norm.running_mean", channels);
      const auto variance = file.floats(module + "norm.running_var", channels);
      for (int c = 0; c < channels; ++c) {
        const float scale = batch.gamma[c] / std::sqrt(variance[c] + inner);
        for (int k = 0; k < branch.kernel; ++k)
          branch.weight[static_cast<size_t>(c) * branch.kernel + k] *= scale;
        branch.bias[c] = (branch.bias[c] - mean[c]) * scale + batch.beta[c];
      }
    }
  } else {
    throw Error("The model has a branch of the kind " + kind +
                ", which this program has not: install a newer one.");
  }
  return branch;
}

std::shared_ptr<const Positions> Encoder::positions(int past, int future,
                                                    Context& context) const {
  if (!relative_) return nullptr;
  std::lock_guard<std::mutex> lock(mutex_);
  // the last eight queries' band sticks out on both sides
  const long left = past + 16, right = future + 48;
  if (made_ != nullptr && made_->zero >= left && made_->stride - made_->zero >= right)
    return made_;
  auto fresh = std::make_shared<Positions>();
  fresh->zero = left;
  fresh->stride = left + right;
  Scope scope(*context.scratch);
  const int count = static_cast<int>(fresh->stride);
  Tiles x = new_tiles(width_, count, 32, context);
  std::fill_n(x.data, x.size(), 0.0f);
  for (int d = 0; d < width_; d += 2) {
    const float rate = std::exp(static_cast<float>(d) * -static_cast<float>(std::log(10000.0) / width_));
    for (int m = 0; m < count; ++m) {
      // as in ESPnet, of which the encoding of -n is that of n with the sine's sign turned
      const float angle = static_cast<float>(std::labs(fresh->zero - m)) * rate;
      const float sine = std::sin(angle);
      float* to = x.tile(m / x.width) + static_cast<size_t>(d) * x.width + m % x.width;
      to[0] = fresh->zero >= m ? sine : -sine;
      if (d + 1 < width_) to[x.width] = std::cos(angle);
    }
  }
  for (const Block& block : blocks_) {
    fresh->of_block.emplace_back();
    for (const Branch& branch : block.branches) {
      if (branch.kind != Branch::Kind::kAttention) continue;
      Scope inner(*context.scratch);
      const int size = branch.heads * branch.head_width;
      const Tiles y = new_tiles(size, count, 32, context);
      branch.position.run(x, y, Epilogue::kStore, 0.0f, context);
      auto& rows = fresh->of_block.back();
      rows.resize(static_cast<size_t>(size) * fresh->stride + kRoom);
      for (int c = 0; c < size; ++c)
        for (int m = 0; m < count; ++m)
          rows[static_cast<size_t>(c) * fresh->stride + m] =
              y.tile(m / y.width)[static_cast<size_t>(c) * y.width + m % y.width];
    }
  }
  made_ = fresh;
  return made_;
}

EncoderStream::EncoderStream(std::shared_ptr<const Encoder> encoder, Chunk chunk,
                             Context& context)
    : encoder_(std::move(encoder)), chunk_(chunk), whole_(chunk.size == 0) {
  if (whole_) return;  // positions when the length is known
  positions_ = encoder_->positions(chunk.left + chunk.size, chunk.size, context);
  for (const Block& block : encoder_->blocks()) {
    Past past;
    for (const Branch& branch : block.branches) {
      if (branch.kind == Branch::Kind::kAttention) {
        const int capacity = up(chunk.left + chunk.size, 32);
        const size_t size =
            static_cast<size_t>(branch.heads) * branch.head_width * capacity + kRoom;
        past.keys.assign(size, 0.0f);
        past.values.assign(size, 0.0f);
        past.view = {nullptr, nullptr, branch.heads, branch.head_width, capacity, 0};
      } else if (branch.kind == Branch::Kind::kConvolution) {
        past.inputs.assign(static_cast<size_t>(branch.in.outputs()) * (branch.kernel - 1), 0.0f);
      }
    }
    past_.push_back(std::move(past));
  }
  for (Past& past : past_) {
    past.view.keys = past.keys.data();
    past.view.values = past.values.data();
  }
}

void EncoderStream::reset() {
  for (Past& past : past_) {
    past.view.frames = 0;
    std::fill(past.inputs.begin(), past.inputs.end(), 0.0f);
  }
}

const float* EncoderStream::positions_of(size_t block) const {
  return positions_ == nullptr ? nullptr : positions_->of_block[block].data();
}

void EncoderStream::run(const Tiles& x, Context& context) {
  if (x.frames == 0) return;
  if (whole_) positions_ = encoder_->positions(x.frames, x.frames, context);
  Past none;
  for (size_t i = 0; i < encoder_->blocks().size(); ++i) {
    const Block& block = encoder_->blocks()[i];
    Past& past = whole_ ? none : past_[i];
    for (const Branch& branch : block.branches) {
      Scope scope(*context.scratch);
      if (branch.kind == Branch::Kind::kFeedForward)
        feed_forward(branch, x, context);
      else if (branch.kind == Branch::Kind::kAttention)
        attention(branch, i, x, past, context);
      else
        convolution(branch, x, past, context);
    }
    block.norm.run(x, x, context);
  }
  encoder_->norm().run(x, x, context);
}

void EncoderStream::feed_forward(const Branch& branch, const Tiles& x, Context& context) {
  const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
  const Tiles hidden = new_tiles(branch.in.outputs(), x.frames, x.width, context);
  branch.norm.run(x, inside, context);
  branch.in.run(inside, hidden, epilogue_of(branch.activation), 0.0f, context);
  branch.out.run(hidden, x, Epilogue::kAdd, branch.scale, context);
}

void EncoderStream::attention(const Branch& branch, size_t block, const Tiles& x, Past& past,
                              Context& context) {
  const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
  const Tiles qkv = new_tiles(branch.in.outputs(), x.frames, x.width, context);
  const Tiles seen = new_tiles(branch.heads * branch.head_width, x.frames, x.width, context);
  // lanes beyond the last frame are numbers too
  std::fill_n(seen.tile(seen.count() - 1), static_cast<size_t>(seen.channels) * seen.width, 0.0f);
  branch.norm.run(x, inside, context);
  branch.in.run(inside, qkv, Epilogue::kStore, 0.0f, context);
  if (whole_) {
    whole(branch, block, qkv, seen, context);
  } else {
    KeyValues& view = past.view;
    append_keys(qkv, 0, x.frames, view);
    attend(qkv, 0, x.frames, view, positions_of(block), positions_ ? positions_->stride : 0,
           positions_ ? positions_->zero : 0, branch.bias_u.data(), branch.bias_v.data(), seen,
           context);
    const int gone = std::max(view.frames - chunk_.left, 0);
    view.frames -= gone;
    for (size_t row = 0; gone > 0 && row < static_cast<size_t>(view.heads) * view.width; ++row) {
      for (float* rows : {view.keys, view.values}) {
        float* at = rows + row * view.capacity;
        std::memmove(at, at + gone, sizeof(float) * view.frames);
      }
    }
  }
  branch.out.run(seen, x, Epilogue::kAdd, branch.scale, context);
}

void EncoderStream::whole(const Branch& branch, size_t block, const Tiles& qkv, const Tiles& seen,
                          Context& context) {
  KeyValues all{nullptr, nullptr, branch.heads, branch.head_width, up(qkv.frames, 32), 0};
  const size_t size = static_cast<size_t>(all.heads) * all.width * all.capacity + kRoom;
  all.keys = context.scratch->take<float>(size);
  all.values = context.scratch->take<float>(size);
  std::fill_n(all.keys, size, 0.0f);
  std::fill_n(all.values, size, 0.0f);
  append_keys(qkv, 0, qkv.frames, all);
  // a size with a chunk sees a recording as its stream does
  const Chunk chunk = encoder_->chunk();
  const int step = chunk.size != 0 ? chunk.size : qkv.frames;
  for (int first = 0; first < qkv.frames; first += step) {
    const int frames = std::min(step, qkv.frames - first);
    const int begin = chunk.size != 0 ? std::max(first - chunk.left, 0) : 0;
    KeyValues part = all;
    part.keys += begin;
    part.values += begin;
    part.frames = first + frames - begin;
    attend(qkv, first, frames, part, positions_of(block), positions_ ? positions_->stride : 0,
           positions_ ? positions_->zero : 0, branch.bias_u.data(), branch.bias_v.data(), seen,
           context);
  }
}

void EncoderStream::convolution(const Branch& branch, const Tiles& x, Past& past,
                                Context& context) {
  const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
  const Tiles gated = new_tiles(branch.in.outputs(), x.frames, x.width, context);
  const Tiles convolved = new_tiles(branch.in.outputs(), x.frames, x.width, context);
  branch.norm.run(x, inside, context);
  branch.in.run(inside, gated, Epilogue::kGate, 0.0f, context);
  const int memory = branch.kernel - 1;
  const int before = encoder_->causal() ? memory : memory / 2;
  depthwise(gated, branch.weight.data(), branch.bias.data(), branch.kernel, before,
            whole_ ? nullptr : past.inputs.data(), !whole_, convolved, context);
  if (branch.layer_norm) branch.inner.run(convolved, convolved, context);
  activate(convolved, branch.activation, context);
  branch.out.run(convolved, x, Epilogue::kAdd, branch.scale, context);
}

}  // namespace omnisparse
