// The Conformer's blocks: a whole recording at once, or chunk by chunk.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "layers.h"

namespace omnisparse {

struct Chunk {
  int size = 0;  // frames encoded together; 0: the whole recording
  int left = 0;  // frames before them that they see
};

// Projected distances of one attention: rows [head][width of a head][stride], distance 0 in
// column `zero`, farther past to its left.
struct Positions {
  long stride = 0, zero = 0;
  std::vector<std::vector<float>> of_block;  // empty where a block has no attention
};

struct Branch {
  enum class Kind { kFeedForward, kAttention, kConvolution };
  Kind kind;
  float scale;
  Norm norm;
  Linear in, out;  // w_1, w_2; q, k and v, linear_out; both pointwise convolutions
  Activation activation = Activation::kSwish;
  // attention
  int heads = 0, head_width = 0;
  std::vector<float> bias_u, bias_v;
  Linear position;
  // convolution; a BatchNorm is folded into its weights
  int kernel = 0;
  std::vector<float> weight, bias;
  bool layer_norm = false;
  Norm inner;
};

struct Block {
  std::vector<Branch> branches;
  Norm norm;
};

class Encoder {
 public:
  explicit Encoder(const Container& file);

  int width() const { return width_; }
  bool causal() const { return causal_; }
  Chunk chunk() const { return chunk_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  const Norm& norm() const { return norm_; }

  // Distances from `past` frames back to `future` frames ahead; made once and shared.
  std::shared_ptr<const Positions> positions(int past, int future, Context& context) const;

 private:
  Branch read(const Container& file, const Json& told, float epsilon) const;

  int width_ = 0;
  bool causal_ = false, relative_ = false;
  Chunk chunk_;
  std::vector<Block> blocks_;
  Norm norm_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Positions> made_;
};

// What the blocks keep of one recording's past.
class EncoderStream {
 public:
  // A chunk of size 0: recordings come whole.
  EncoderStream(std::shared_ptr<const Encoder> encoder, Chunk chunk, Context& context);

  Chunk chunk() const { return chunk_; }
  void reset();
  // x: the front end's output, of at most a chunk, or of the whole recording; becomes the
  // encoder's.
  void run(const Tiles& x, Context& context);

 private:
  struct Past {
    std::vector<float> keys, values;  // [head][width of a head][capacity], and room to read on
    KeyValues view;
    std::vector<float> inputs;        // of the convolution [channels][kernel - 1]
  };

  void feed_forward(const Branch& branch, const Tiles& x, Context& context);
  void attention(const Branch& branch, size_t block, const Tiles& x, Past& past, Context& context);
  void convolution(const Branch& branch, const Tiles& x, Past& past, Context& context);
  void whole(const Branch& branch, size_t block, const Tiles& qkv, const Tiles& seen,
             Context& context);
  const float* positions_of(size_t block) const;

  std::shared_ptr<const Encoder> encoder_;
  Chunk chunk_;
  bool whole_;
  std::shared_ptr<const Positions> positions_;
  std::vector<Past> past_;
};

}  // namespace omnisparse
