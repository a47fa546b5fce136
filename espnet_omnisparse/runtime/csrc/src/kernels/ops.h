// What the layers of a model are computed with. Activations lie in tiles of frames, channel
// after channel, so that frames are the vector's lanes: sparse and dense products need no
// transposition, and norms, activations and quantisation run down the channels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "arena.h"
#include "threads.h"

namespace omnisparse {

struct KernelTable;

// Frame t, channel c lies at ((t / width) * channels + c) * width + t % width. Lanes beyond
// `frames` hold finite numbers that nothing reads.
struct Tiles {
  float* data = nullptr;
  int channels = 0;
  int frames = 0;
  int width = 32;  // 8, 16 or 32
  int of = 0;      // channels in memory, if these are a slice of more

  int count() const { return (frames + width - 1) / width; }
  float* tile(int number) const {
    return data + static_cast<size_t>(number) * (of != 0 ? of : channels) * width;
  }
  size_t size() const { return static_cast<size_t>(count()) * channels * width; }
  // Some of the channels, in place.
  Tiles slice(int first, int some) const {
    return {data + static_cast<size_t>(first) * width, some, frames, width,
            of != 0 ? of : channels};
  }
};

// The narrowest tile that some frames fit in.
inline int width_for(int frames) { return frames <= 8 ? 8 : frames <= 16 ? 16 : 32; }

// What one thread of computation works with.
struct Context {
  ThreadPool* pool;
  Arena* scratch;
};

Tiles new_tiles(int channels, int frames, int width, Context& context);

enum class DType { kF32, kF16, kI8 };

// The value of a number of 16 bits, IEEE's half precision.
float from_half(uint16_t half);

// A matrix [rows, columns] as a file has it.
struct WeightView {
  int rows = 0;
  int columns = 0;
  DType type = DType::kF32;
  int block_rows = 0;  // 0: dense, row after row
  int block_columns = 0;
  const void* values = nullptr;
  const uint16_t* block_column = nullptr;  // of each block
  const int32_t* block_begin = nullptr;    // of each row of blocks, and the end
  const float* scale = nullptr;            // of each row of an int8 matrix
};

// All of its numbers, row after row, as the file has them: those of int8 without their scale.
std::vector<float> numbers_of(const WeightView& view);

// Inputs of one tile that lie elsewhere: those of lanes 8 i .. 8 i + 7, column c, at
// eights[i] + offset[c]. A convolution's windows need no copy that way.
struct Window {
  const float* eights[4];
  const int32_t* offset;
  const float* largest;  // absolute value of each lane, of int8 products alone
};

// Where the outputs of a window go: those of lanes 8 i .. 8 i + 7, row r, to
// eights[i] + r * apart. Beyond `count` the window and these repeat their last.
struct Places {
  float* eights[4];
  int count;  // of eights
  long apart;
};

enum class Epilogue {
  kStore,
  kRelu,
  kSwish,
  kTanh,
  kGelu,
  kGate,  // the first half of the outputs times the sigmoid of the second
  kAdd,   // y += factor * output
  kHardTanh,
  kSelu,
};

// y = epilogue(W x + b), packed for this CPU.
class Linear {
 public:
  Linear() = default;
  // `stacked`: matrices of the same inputs, one under the other; `biases`: null for none.
  // `gated` if it will be run with kGate, and only then.
  Linear(const std::vector<WeightView>& stacked, const std::vector<const float*>& biases,
         bool gated = false);

  int inputs() const { return inputs_; }
  int outputs() const { return gated_ ? rows_ / 2 : rows_; }
  size_t bytes() const;
  bool int8() const { return int8_; }
  void run(const Tiles& x, const Tiles& y, Epilogue epilogue, float factor,
           Context& context) const;
  // The same of windows, of as many lanes as `y` has places; of no kAdd and no kGate.
  void run(const Window& x, const Places& y, Epilogue epilogue, Context& context) const;

 private:
  friend struct LinearParts;
  const KernelTable* table_ = nullptr;  // what it is packed for
  int inputs_ = 0;
  int rows_ = 0;
  int block_ = 8;  // rows computed together
  bool gated_ = false;
  bool int8_ = false;
  bool indexed_ = false;          // else every column, in order
  std::vector<int32_t> order_;    // row of the matrix of each packed row; -1: padding
  std::vector<int32_t> begin_;    // first column of each block of rows, and the end
  std::vector<uint16_t> columns_;
  std::vector<float> values_;     // [column][row of the block]
  std::vector<int16_t> values16_; // int8 weights [group of columns][row][in group]
  std::vector<int8_t> values8_;
  std::vector<float> scale_;      // of packed rows
  std::vector<float> bias_;
  std::vector<int32_t> sum_;      // of packed rows' quantised weights
};

// y = (x - mean) / sqrt(variance + epsilon) * gamma + beta, over the channels of each frame.
// y may be x.
void layer_norm(const Tiles& x, const float* gamma, const float* beta, float epsilon,
                const Tiles& y, Context& context);

enum class Activation { kNone, kRelu, kSwish, kTanh, kGelu, kHardTanh, kSelu };
void activate(const Tiles& x, Activation activation, Context& context);

// x <- x * y, number by number.
void multiply(const Tiles& x, const Tiles& y, Context& context);

// A depthwise convolution along time. Frames before the first are `past` [channels][kernel-1]
// (null: zeros), of which the last `before` are seen; frames after the last are zeros.
// `past` is replaced by what the next call needs when `keep` is true. y may be x.
void depthwise(const Tiles& x, const float* weight, const float* bias, int kernel, int before,
               float* past, bool keep, const Tiles& y, Context& context);

// Keys and values of some frames: rows [head][width of a head][capacity], frames side by side.
struct KeyValues {
  float* keys = nullptr;
  float* values = nullptr;
  int heads = 0;
  int width = 0;
  int capacity = 0;  // a multiple of 32
  int frames = 0;
};

// Appends the frames of `qkv` (channels: queries, keys, values) to `kv`, which has room.
void append_keys(const Tiles& qkv, int first, int frames, KeyValues& kv);

// Relative attention of the queries of `qkv`, frames first .. first + frames, to all of `kv`,
// whose last `frames` frames are the queries' own. `positions` are rows [head][width][stride]:
// projected distances, the column `zero` that of distance 0, farther past to its left.
// Null positions: without. bias_u and bias_v: [heads][width] each. `late`: the distance of a
// key in the future is that of the next query, as in ESPnet's older attention.
void attend(const Tiles& qkv, int first, int frames, const KeyValues& kv,
            const float* positions, long stride, long zero, const float* bias_u,
            const float* bias_v, bool late, const Tiles& out, Context& context);

// Copies between tiles and rows [frames, channels].
void to_tiles(const float* rows, const Tiles& tiles);
void from_tiles(const Tiles& tiles, float* rows);

// log(sum(exp(x))) is subtracted from each frame.
void log_softmax(const Tiles& x, Context& context);

// x <- log(max(x, floor))
void log_floor(float* x, size_t count, float floor);

}  // namespace omnisparse
