#include <algorithm>
#include <cstring>

#include "branch.h"

namespace omnisparse {

namespace {

constexpr int kRoom = 64;  // floats that a vector may read beyond a row

int up(int x, int to) { return (x + to - 1) / to * to; }

class Attention : public Branch {
 public:
  Attention(const Container& file, const Json& told, const BranchOptions& options)
      : norm_(read_norm(file, told.at("norm").string(), options.epsilon, options.width)),
        heads_(told.bounded("heads", 1, 1024)),
        head_width_(told.bounded("head_width", 1, 4096)),
        size_(heads_ * head_width_),
        relative_(options.relative),
        late_(options.late) {
    const std::string module = told.at("module").string() + ".";
    std::vector<WeightView> weights;
    std::vector<std::vector<float>> biases;
    for (const char* name : {"linear_q", "linear_k", "linear_v"}) {
      weights.push_back(file.matrix(module + name + ".weight", size_, options.width));
      biases.push_back(file.floats(module + name + ".bias", size_));
    }
    in_ = Linear(weights, {biases[0].data(), biases[1].data(), biases[2].data()});
    out_ = read_linear(file, module + "linear_out.weight", module + "linear_out.bias",
                       options.width, size_);
    if (!relative_) return;
    position_ = read_linear(file, module + "linear_pos.weight", "", size_, options.width);
    bias_u_ = file.floats(module + "pos_bias_u", size_);
    bias_v_ = file.floats(module + "pos_bias_v", size_);
  }

  void run(const Tiles& x, const Into& into, const Sight& sight, Past* past,
           Context& context) const override {
    const Tiles inside = new_tiles(x.channels, x.frames, x.width, context);
    const Tiles qkv = new_tiles(in_.outputs(), x.frames, x.width, context);
    const Tiles seen = new_tiles(size_, x.frames, x.width, context);
    // lanes beyond the last frame are numbers too
    std::fill_n(seen.tile(seen.count() - 1), static_cast<size_t>(size_) * seen.width, 0.0f);
    norm_.run(x, inside, context);
    in_.run(inside, qkv, Epilogue::kStore, 0.0f, context);
    if (past == nullptr)
      whole(qkv, seen, sight, context);
    else
      chunk(qkv, seen, sight, *past, context);
    out_.run(seen, into.y, into.epilogue, into.factor, context);
  }

  Past past(const Chunk& chunk) const override {
    Past past;
    past.capacity = up(chunk.left + chunk.size, 32);
    past.keys.assign(room(past.capacity), 0.0f);
    past.values.assign(room(past.capacity), 0.0f);
    return past;
  }

  void project(const Tiles& x, Positions& positions, Context& context) const override {
    Scope scope(*context.scratch);
    const Tiles y = new_tiles(size_, x.frames, x.width, context);
    position_.run(x, y, Epilogue::kStore, 0.0f, context);
    positions.of[this] = rows_of(y);
  }

 private:
  // Floats of keys or values of so many frames.
  size_t room(int capacity) const { return static_cast<size_t>(size_) * capacity + kRoom; }

  void chunk(const Tiles& qkv, const Tiles& seen, const Sight& sight, Past& past,
             Context& context) const {
    KeyValues kept{past.keys.data(), past.values.data(), heads_, head_width_, past.capacity,
                   past.frames};
    append_keys(qkv, 0, qkv.frames, kept);
    see(qkv, 0, qkv.frames, kept, seen, sight, context);
    const int gone = std::max(kept.frames - sight.chunk.left, 0);
    past.frames = kept.frames - gone;
    for (size_t row = 0; gone > 0 && row < static_cast<size_t>(size_); ++row) {
      for (float* rows : {kept.keys, kept.values}) {
        float* at = rows + row * kept.capacity;
        std::memmove(at, at + gone, sizeof(float) * past.frames);
      }
    }
  }

  void whole(const Tiles& qkv, const Tiles& seen, const Sight& sight, Context& context) const {
    KeyValues all{nullptr, nullptr, heads_, head_width_, up(qkv.frames, 32), 0};
    all.keys = context.scratch->take<float>(room(all.capacity));
    all.values = context.scratch->take<float>(room(all.capacity));
    std::fill_n(all.keys, room(all.capacity), 0.0f);
    std::fill_n(all.values, room(all.capacity), 0.0f);
    append_keys(qkv, 0, qkv.frames, all);
    // a size with a chunk sees a recording as its stream does
    const Chunk chunk = sight.chunk;
    const int step = chunk.size != 0 ? chunk.size : qkv.frames;
    for (int first = 0; first < qkv.frames; first += step) {
      const int frames = std::min(step, qkv.frames - first);
      const int begin = chunk.size != 0 ? std::max(first - chunk.left, 0) : 0;
      KeyValues part = all;
      part.keys += begin;
      part.values += begin;
      part.frames = first + frames - begin;
      see(qkv, first, frames, part, seen, sight, context);
    }
  }

  void see(const Tiles& qkv, int first, int frames, const KeyValues& kept, const Tiles& seen,
           const Sight& sight, Context& context) const {
    if (!relative_) {
      attend(qkv, first, frames, kept, nullptr, 0, 0, nullptr, nullptr, false, seen,
             context);
      return;
    }
    attend(qkv, first, frames, kept, sight.positions->of.at(this).data(),
           sight.positions->stride, sight.positions->zero, bias_u_.data(), bias_v_.data(), late_,
           seen, context);
  }

  Norm norm_;
  int heads_, head_width_, size_;
  bool relative_, late_;
  Linear in_, out_;  // q, k and v; linear_out
  Linear position_;
  std::vector<float> bias_u_, bias_v_;
};

}  // namespace

std::vector<float> rows_of(const Tiles& x) {
  std::vector<float> rows(static_cast<size_t>(x.channels) * x.frames + kRoom);
  for (int c = 0; c < x.channels; ++c)
    for (int m = 0; m < x.frames; ++m)
      rows[static_cast<size_t>(c) * x.frames + m] =
          x.tile(m / x.width)[static_cast<size_t>(c) * x.width + m % x.width];
  return rows;
}

std::unique_ptr<const Branch> read_attention(const Container& file, const Json& told,
                                             const BranchOptions& options) {
  return std::make_unique<Attention>(file, told, options);
}

}  // namespace omnisparse
