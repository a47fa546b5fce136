// Memory that is handed out from one block and given back all at once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace omnisparse {

// Blocks of growing size. After a reset they are one block of what they were together: a
// stream whose chunks are alike allocates nothing after its first.
class Arena {
 public:
  // A place to come back to: what is taken after it is given back.
  struct Mark {
    size_t block, used;
  };

  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }

  Mark mark() const { return here_; }
  void release(Mark mark) { here_ = mark; }

  void reset() {
    here_ = {0, 0};
    if (blocks_.size() < 2) return;
    const size_t size = capacity();
    blocks_.clear();
    add(size);
  }

  size_t capacity() const {
    size_t size = 0;
    for (const Block& block : blocks_) size += block.size;
    return size;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  struct Block {
    std::unique_ptr<unsigned char, Free> data;
    size_t size;
  };

  void add(size_t size) {
    void* p = std::aligned_alloc(kAlign, size);
    if (p == nullptr) throw std::bad_alloc();
    Block block{std::unique_ptr<unsigned char, Free>(static_cast<unsigned char*>(p)), size};
    blocks_.push_back(std::move(block));
  }

  void* bytes(size_t count) {
    const size_t size = (count + kAlign - 1) / kAlign * kAlign;
    for (; here_.block < blocks_.size(); here_ = {here_.block + 1, 0}) {
      const Block& block = blocks_[here_.block];
      if (here_.used + size > block.size) continue;
      unsigned char* to = block.data.get() + here_.used;
      here_.used += size;
      return to;
    }
    add(std::max({size, capacity(), kLeast}));  // as much again
    here_ = {blocks_.size() - 1, size};
    return blocks_.back().data.get();
  }

  static constexpr size_t kAlign = 64, kLeast = 1 << 16;
  std::vector<Block> blocks_;
  Mark here_{0, 0};
};

// Gives back what is taken during its life.
class Scope {
 public:
  explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~Scope() { arena_.release(mark_); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace omnisparse
