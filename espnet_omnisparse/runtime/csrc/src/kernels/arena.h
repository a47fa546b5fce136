// Memory that is handed out from one block and given back all at once.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace omnisparse {

// What does not fit is taken from the heap, and the block grows to the peak at the next
// reset: a stream whose chunks are alike allocates nothing after its first.
class Arena {
 public:
  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }

  // A place to come back to: what is taken after it is given back.
  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }

  void reset() {
    if (peak_ > capacity_) {
      block_.reset(allocate(peak_));
      capacity_ = peak_;
    }
    extra_.clear();
    used_ = 0;
  }

  size_t capacity() const { return capacity_; }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<unsigned char, Free>;

  static unsigned char* allocate(size_t size) {
    void* p = std::aligned_alloc(kAlign, (size + kAlign - 1) / kAlign * kAlign);
    if (p == nullptr) throw std::bad_alloc();
    return static_cast<unsigned char*>(p);
  }

  void* bytes(size_t size) {
    size = (size + kAlign - 1) / kAlign * kAlign;
    const size_t begin = used_;
    used_ += size;
    if (used_ > peak_) peak_ = used_;
    if (used_ <= capacity_) return block_.get() + begin;
    extra_.emplace_back(allocate(size ? size : kAlign));
    return extra_.back().get();
  }

  static constexpr size_t kAlign = 64;
  Block block_;
  std::vector<Block> extra_;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t peak_ = 0;
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
  size_t mark_;
};

}  // namespace omnisparse
