// An encoder's blocks: a whole recording at once, or chunk by chunk.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "branch.h"

namespace omnisparse {

struct Block {
  struct Residual {
    float scale;
    std::unique_ptr<const Branch> branch;
  };
  std::vector<Residual> residuals;
  std::optional<Norm> norm;
};

class Encoder {
 public:
  explicit Encoder(const Container& file);

  int width() const { return width_; }
  bool causal() const { return causal_; }
  Chunk chunk() const { return chunk_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  const Norm& norm() const { return norm_; }

  // Of up to `past` frames back and `future` frames ahead, or from the first frame on; made once
  // and shared. Null: none are needed.
  std::shared_ptr<const Positions> positions(int past, int future, Context& context) const;
  // Adds absolute positions, if it has such, to a whole recording.
  void place(const Tiles& x, const Positions* positions) const;

 private:
  enum class Places { kNone, kRelative, kLegacy, kAbsolute };

  int width_ = 0;
  bool causal_ = false;
  Places places_ = Places::kNone;
  float place_scale_ = 1.0f;  // absolute
  int place_count_ = 0;       // legacy: of ESPnet's table
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
  std::shared_ptr<const Encoder> encoder_;
  Chunk chunk_;
  bool whole_;
  std::shared_ptr<const Positions> positions_;
  std::vector<Past> past_;  // of each branch of each block, if chunks come
};

}  // namespace omnisparse
