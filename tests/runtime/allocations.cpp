// Counts what the engine takes from the heap while a stream goes on: MODEL BEAM CHUNKS.
#include <omnisparse.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

namespace {
std::atomic<long> taken{0};
}

void* operator new(std::size_t size) {
  ++taken;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++taken;
  void* p = nullptr;
  return posix_memalign(&p, alignment, size) == 0 ? p : nullptr;
}

int main(int, char** words) {
  omnisparse_model* model = omnisparse_load(words[1], 1);
  omnisparse_stream_options options{0, 0, -1, std::atoi(words[2]), 0};
  omnisparse_stream* stream = omnisparse_stream_new(model, &options);
  if (stream == nullptr) return std::puts(omnisparse_last_error()), 1;
  std::vector<float> block(5120);  // a chunk of 8 frames
  unsigned state = 1;
  const auto push = [&] {
    for (float& x : block) {
      state = state * 1664525u + 1013904223u;
      x = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
    }
    if (omnisparse_stream_push(stream, block.data(), block.size())) std::exit(2);
  };
  for (int i = 0; i < 3; ++i) push();
  const long before = taken;
  for (int i = 0; i < std::atoi(words[3]); ++i) push();
  const long after = taken;
  const int* ids;
  const float* seconds;
  const size_t tokens = omnisparse_stream_tokens(stream, &ids, &seconds);
  std::printf("%ld %zu\n", after - before, tokens);
  omnisparse_stream_free(stream);
  omnisparse_free(model);
}
