// Norms, activations, convolutions and attention on tiles.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops.h"
#include "table.h"

namespace omnisparse {

namespace {

constexpr int kQueries = 8;  // attended together

int up(int x, int to) { return (x + to - 1) / to * to; }

// Frames first .. first + count of one channel, side by side.
void copy_row(const Tiles& tiles, int channel, int first, int count, float* to) {
  while (count > 0) {
    const int lane = first % tiles.width;
    const int part = std::min(count, tiles.width - lane);
    const float* from =
        tiles.tile(first / tiles.width) + static_cast<size_t>(channel) * tiles.width + lane;
    if (part % 8 == 0) {  // of a constant size: two instructions instead of a call
      for (int i = 0; i < part; i += 8) std::memcpy(to + i, from + i, 8 * sizeof(float));
    } else {
      std::copy_n(from, part, to);
    }
    to += part;
    first += part;
    count -= part;
  }
}

}  // namespace

Tiles new_tiles(int channels, int frames, int width, Context& context) {
  Tiles tiles{nullptr, channels, frames, width};
  tiles.data = context.scratch->take<float>(tiles.size());
  return tiles;
}

void layer_norm(const Tiles& x, const float* gamma, const float* beta, float epsilon,
                const Tiles& y, Context& context) {
  const KernelTable& table = kernels();
  context.pool->each(x.count(), [&](int t) {
    table.norm(x.tile(t), gamma, beta, epsilon, x.channels, x.width, y.tile(t));
  });
}

void activate(const Tiles& x, Activation activation, Context& context) {
  if (activation == Activation::kNone) return;
  const KernelTable& table = kernels();
  const size_t size = static_cast<size_t>(x.channels) * x.width;
  context.pool->each(x.count(), [&](int t) { table.activate(x.tile(t), size, activation); });
}

void multiply(const Tiles& x, const Tiles& y, Context& context) {
  const KernelTable& table = kernels();
  const size_t size = static_cast<size_t>(x.channels) * x.width;
  context.pool->each(x.count(), [&](int t) { table.multiply(x.tile(t), y.tile(t), size); });
}

void depthwise(const Tiles& x, const float* weight, const float* bias, int kernel, int before,
               float* past, bool keep, const Tiles& y, Context& context) {
  Scope scope(*context.scratch);
  const KernelTable& table = kernels();
  const int padded = x.count() * x.width, memory = kernel - 1;
  const int threads = context.pool->threads();
  // room for a kernel beyond the last frame
  const size_t length = static_cast<size_t>(before) + padded + kernel + 32;
  float* rows = context.scratch->take<float>(length * threads);
  float* outs = context.scratch->take<float>(static_cast<size_t>(padded) * threads);
  const int share = (x.channels + threads - 1) / threads;
  context.pool->each(threads, [&](int thread) {
    float* row = rows + length * thread;
    float* out = outs + static_cast<size_t>(padded) * thread;
    std::fill_n(row, length, 0.0f);
    for (int c = thread * share; c < std::min(x.channels, (thread + 1) * share); ++c) {
      float* mine = past == nullptr ? nullptr : past + static_cast<size_t>(c) * memory;
      if (mine != nullptr) std::copy_n(mine + memory - before, before, row);
      copy_row(x, c, 0, x.frames, row + before);
      if (keep) {  // the last frames of the past and of these, together
        const int fresh = std::min(memory, x.frames);
        std::memmove(mine, mine + fresh, sizeof(float) * (memory - fresh));
        std::copy_n(row + before + x.frames - fresh, fresh, mine + memory - fresh);
      }
      table.convolve(row, weight + static_cast<size_t>(c) * kernel, bias[c], kernel, padded, out);
      for (int t = 0; t < y.count(); ++t)
        std::copy_n(out + static_cast<size_t>(t) * y.width, y.width,
                    y.tile(t) + static_cast<size_t>(c) * y.width);
    }
  });
}

void append_keys(const Tiles& qkv, int first, int frames, KeyValues& kv) {
  const int size = kv.heads * kv.width;
  for (int c = 0; c < size; ++c) {
    const size_t at = static_cast<size_t>(c) * kv.capacity + kv.frames;
    copy_row(qkv, size + c, first, frames, kv.keys + at);
    copy_row(qkv, 2 * size + c, first, frames, kv.values + at);
  }
  kv.frames += frames;
}

namespace {

// What one thread needs to attend to `keys` frames.
struct AttentionScratch {
  float* content;   // [8][padded keys]
  float* place;     // [8][padded keys + 8], twice: with the next queries
  float* queries;   // [head's width][8], three times: with either bias, and the next ones
  float* values;    // [padded keys][padded head's width]: frame after frame
  float* seen;      // [8][padded head's width]
};

}  // namespace

void attend(const Tiles& qkv, int first, int frames, const KeyValues& kv,
            const float* positions, long stride, long zero, const float* bias_u,
            const float* bias_v, bool late, const Tiles& out, Context& context) {
  Scope scope(*context.scratch);
  const KernelTable& table = kernels();
  const int keys = kv.frames, width = kv.width;
  const int padded = up(keys, 32), lanes = up(width, 8);
  const int threads = std::min(context.pool->threads(), kv.heads);
  const size_t band = static_cast<size_t>(padded) + 32;
  const float factor = 1.0f / std::sqrt(static_cast<float>(width));
  const auto make = [&] {
    Arena& arena = *context.scratch;
    return AttentionScratch{arena.take<float>(static_cast<size_t>(kQueries) * padded),
                            arena.take<float>(2 * kQueries * band),
                            arena.take<float>(3 * static_cast<size_t>(width) * kQueries),
                            arena.take<float>(static_cast<size_t>(padded) * lanes),
                            arena.take<float>(static_cast<size_t>(kQueries) * lanes)};
  };
  constexpr int kMost = 64;
  AttentionScratch all[kMost];
  for (int i = 0; i < std::min(threads, kMost); ++i) all[i] = make();
  const int sharing = std::min(threads, kMost);
  const int share = (kv.heads + sharing - 1) / sharing;
  context.pool->each(sharing, [&](int thread) {
    const AttentionScratch& s = all[thread];
    for (int head = thread * share; head < std::min(kv.heads, (thread + 1) * share); ++head) {
      const float* key = kv.keys + static_cast<size_t>(head) * width * kv.capacity;
      const float* value = kv.values + static_cast<size_t>(head) * width * kv.capacity;
      // frames side by side become frame after frame; what is beyond is multiplied by 0
      for (int d = 0; d < lanes; d += 8) {
        for (int j = 0; j < padded; j += 8) {
          if (d + 8 <= width && j + 8 <= kv.capacity) {
            table.transpose8(value + static_cast<size_t>(d) * kv.capacity + j, kv.capacity,
                             s.values + static_cast<size_t>(j) * lanes + d, lanes);
            continue;
          }
          for (int r = 0; r < 8; ++r)
            for (int c = 0; c < 8; ++c) {
              const bool inside = d + r < width && j + c < kv.capacity;
              s.values[static_cast<size_t>(j + c) * lanes + d + r] =
                  inside ? value[static_cast<size_t>(d + r) * kv.capacity + j + c] : 0.0f;
            }
        }
      }
      for (int j = keys; j < padded; ++j)
        std::fill_n(s.values + static_cast<size_t>(j) * lanes, lanes, 0.0f);
      for (int q = 0; q < frames; q += kQueries) {
        const int count = std::min(kQueries, frames - q);
        float* place_queries = s.queries + static_cast<size_t>(width) * kQueries;
        float* next_queries = place_queries + static_cast<size_t>(width) * kQueries;
        for (int d = 0; d < width; ++d) {
          alignas(32) float eight[kQueries + 1] = {};  // and the next one, if it is needed
          copy_row(qkv, head * width + d, first + q, std::min(kQueries + late, frames - q),
                   eight);
          const size_t to = static_cast<size_t>(d) * kQueries;
          const float u = bias_u != nullptr ? bias_u[head * width + d] : 0.0f;
          const float v = bias_v != nullptr ? bias_v[head * width + d] : 0.0f;
          for (int i = 0; i < kQueries; ++i) {
            s.queries[to + i] = eight[i] + u;
            place_queries[to + i] = eight[i] + v;
            if (late) next_queries[to + i] = eight[i + 1] + v;
          }
        }
        table.rows8(s.queries, 1, kQueries, width, key, kv.capacity,
                    std::min(padded, kv.capacity), s.content, padded);
        if (positions != nullptr) {
          // key j is keys - frames + q + i - j frames before query i: of the band of all
          // queries' distances, query i needs what begins 7 - i columns in
          const long farthest = static_cast<long>(keys) - frames + q + kQueries - 1;
          const float* from =
              positions + static_cast<size_t>(head) * width * stride + zero - farthest;
          table.rows8(place_queries, 1, kQueries, width, from, stride, up(keys + kQueries - 1, 8),
                      s.place, static_cast<long>(band));
          if (late)
            table.rows8(next_queries, 1, kQueries, width, from, stride,
                        up(keys + kQueries - 1, 8), s.place + kQueries * band,
                        static_cast<long>(band));
        }
        for (int i = 0; i < count; ++i) {
          float* row = s.content + static_cast<size_t>(i) * padded;
          if (positions != nullptr) {
            const float* place = s.place + band * i + (kQueries - 1 - i);
            const int past = late ? keys - frames + q + i + 1 : keys;
            table.add(row, place, past);
            table.add(row + past, place + kQueries * band + past, keys - past);
          }
          table.softmax(row, keys, padded, factor);
        }
        table.rows8(s.content, padded, 1, keys, s.values, lanes, lanes, s.seen, lanes);
        const int begin = first + q;
        if (begin % 8 == 0 && lanes == width) {  // eight lanes of one tile
          float* to = out.tile(begin / out.width) + begin % out.width +
                      static_cast<size_t>(head) * width * out.width;
          for (int d = 0; d < width; d += 8)
            table.transpose8(s.seen + d, lanes, to + static_cast<size_t>(d) * out.width,
                             out.width);
          continue;
        }
        for (int i = 0; i < count; ++i) {
          const int t = begin + i;
          float* to = out.tile(t / out.width) + t % out.width;
          for (int d = 0; d < width; ++d)
            to[static_cast<size_t>(head * width + d) * out.width] =
                s.seen[static_cast<size_t>(i) * lanes + d];
        }
      }
    }
  });
}

void to_tiles(const float* rows, const Tiles& tiles) {
  for (int t = 0; t < tiles.count() * tiles.width; ++t) {
    float* to = tiles.tile(t / tiles.width) + t % tiles.width;
    for (int c = 0; c < tiles.channels; ++c)
      to[static_cast<size_t>(c) * tiles.width] =
          t < tiles.frames ? rows[static_cast<size_t>(t) * tiles.channels + c] : 0.0f;
  }
}

void from_tiles(const Tiles& tiles, float* rows) {
  for (int t = 0; t < tiles.frames; ++t) {
    const float* from = tiles.tile(t / tiles.width) + t % tiles.width;
    for (int c = 0; c < tiles.channels; ++c)
      rows[static_cast<size_t>(t) * tiles.channels + c] =
          from[static_cast<size_t>(c) * tiles.width];
  }
}

void log_softmax(const Tiles& x, Context& context) {
  const KernelTable& table = kernels();
  context.pool->each(x.count(),
                     [&](int t) { table.log_softmax(x.tile(t), x.channels, x.width); });
}

void log_floor(float* x, size_t count, float floor) {
  const KernelTable& table = kernels();
  const size_t whole = count / 8 * 8;
  table.log_floor(x, whole, floor);
  if (whole == count) return;
  float rest[8];
  std::fill_n(rest, 8, floor);
  std::copy_n(x + whole, count - whole, rest);
  table.log_floor(rest, 8, floor);
  std::copy_n(rest, count - whole, x + whole);
}

}  // namespace omnisparse
