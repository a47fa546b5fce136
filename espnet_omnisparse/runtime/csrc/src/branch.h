// The branches of an encoder's blocks: each computes something of a block's input.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "layers.h"

namespace omnisparse {

class Branch;

struct Chunk {
  int size = 0;  // frames encoded together; 0: the whole recording
  int left = 0;  // frames before them that they see
};

// What is known of the places of a recording's frames: rows [channels][stride].
struct Positions {
  long stride = 0, zero = 0;
  // Relative: the projected distances of each attention, distance 0 in column `zero`, farther
  // past to its left.
  std::map<const Branch*, std::vector<float>> of;
  // Absolute: what is added to the frames, the first one's in column 0.
  std::vector<float> encodings;
};

// What the frames of a recording see of each other.
struct Sight {
  Chunk chunk;                 // of size 0: each frame sees all
  const Positions* positions;  // null: the encoder has none
};

// What a branch keeps of a recording that comes in chunks.
struct Past {
  std::vector<float> keys, values;  // [head][width of a head][capacity], and room to read on
  int frames = 0, capacity = 0;
  std::vector<float> inputs;        // of a convolution [channels][kernel - 1]
  void clear();
};

// Where an output goes: y = output, or y += factor * output.
struct Into {
  Tiles y;
  Epilogue epilogue = Epilogue::kStore;
  float factor = 0.0f;
};

class Branch {
 public:
  virtual ~Branch() = default;
  // x: the block's input, which may be what is added to. past: null of a whole recording.
  virtual void run(const Tiles& x, const Into& into, const Sight& sight, Past* past,
                   Context& context) const = 0;
  // Whether it can only hear whole recordings.
  virtual bool needs_all() const { return false; }
  // Of a recording that comes in such chunks, before its first.
  virtual Past past(const Chunk&) const { return {}; }
  // Adds its own to `positions`, whose distances are encoded in `x`.
  virtual void project(const Tiles&, Positions&, Context&) const {}
};

// What the branches of an encoder have in common.
struct BranchOptions {
  int width;
  float epsilon;  // of the norms
  bool causal, relative, late;  // late: see `attend`
};

// Each throws an Error unless the file has what is told.
std::unique_ptr<const Branch> read_branch(const Container& file, const Json& told,
                                          const BranchOptions& options);
std::unique_ptr<const Branch> read_attention(const Container& file, const Json& told,
                                             const BranchOptions& options);
std::unique_ptr<const Branch> read_gating(const Container& file, const Json& told,
                                          const BranchOptions& options);
std::unique_ptr<const Branch> read_merge(const Container& file, const Json& told,
                                         const BranchOptions& options);

// The rows of tiles as `Positions` have them.
std::vector<float> rows_of(const Tiles& x);

}  // namespace omnisparse
