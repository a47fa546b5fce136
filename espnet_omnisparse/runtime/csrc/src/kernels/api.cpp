#include <algorithm>
#include <exception>
#include <memory>
#include <vector>

#include "omnisparse_kernels.h"
#include "ops.h"
#include "table.h"

using namespace omnisparse;

struct omnisparse_linear {
  Linear layer;
  ThreadPool pool;
  Arena scratch;
  std::vector<float> x, y;
  int frames = 0, width = 32;
  Epilogue epilogue = Epilogue::kStore;

  omnisparse_linear(Linear made, int threads) : layer(std::move(made)), pool(threads) {}
};

namespace {

// Rows [frames, channels] as tiles of their own.
struct Owned {
  std::vector<float> data;
  Tiles tiles;

  Owned(int channels, int frames, int width, const float* rows)
      : tiles{nullptr, channels, frames, width} {
    data.resize(tiles.size());
    tiles.data = data.data();
    if (rows != nullptr) to_tiles(rows, tiles);
  }
};

struct OneThread {
  ThreadPool pool{1};
  Arena scratch;
  Context context{&pool, &scratch};
};

}  // namespace

extern "C" {

const char* omnisparse_isas(void) { return available_isas(); }
const char* omnisparse_isa(void) { return kernels().name; }
int omnisparse_force_isa(const char* name) { return force_isa(name) ? 1 : 0; }

omnisparse_linear* omnisparse_linear_new(int rows, int columns, int type, const void* values,
                                         const float* scale, int block_rows, int block_columns,
                                         const uint16_t* block_column,
                                         const int32_t* block_begin, const float* bias,
                                         int gated, int threads) {
  try {
    const WeightView view{rows,          columns,      static_cast<DType>(type), block_rows,
                          block_columns, values,       block_column,             block_begin,
                          scale};
    return new omnisparse_linear(Linear({view}, {bias}, gated != 0), threads);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void omnisparse_linear_free(omnisparse_linear* linear) { delete linear; }

size_t omnisparse_linear_bytes(const omnisparse_linear* linear) { return linear->layer.bytes(); }

int omnisparse_linear_run(omnisparse_linear* linear, const float* x, int frames, int epilogue,
                          float factor, int width, float* y) {
  try {
    linear->frames = frames;
    linear->width = width != 0 ? width : width_for(frames);
    linear->epilogue = static_cast<Epilogue>(epilogue);
    Owned in(linear->layer.inputs(), frames, linear->width, x);
    Owned out(linear->layer.outputs(), frames, linear->width, y);
    Context context{&linear->pool, &linear->scratch};
    linear->layer.run(in.tiles, out.tiles, linear->epilogue, factor, context);
    linear->scratch.reset();
    from_tiles(out.tiles, y);
    linear->x.swap(in.data);
    linear->y.swap(out.data);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

void omnisparse_linear_repeat(omnisparse_linear* linear, int times) {
  const Tiles x{linear->x.data(), linear->layer.inputs(), linear->frames, linear->width};
  const Tiles y{linear->y.data(), linear->layer.outputs(), linear->frames, linear->width};
  Context context{&linear->pool, &linear->scratch};
  for (int i = 0; i < times; ++i) {
    linear->layer.run(x, y, linear->epilogue, 0.0f, context);
    linear->scratch.reset();
  }
}

void omnisparse_layer_norm(const float* x, int frames, int channels, const float* gamma,
                           const float* beta, float epsilon, float* y) {
  OneThread one;
  Owned tiles(channels, frames, width_for(frames), x);
  layer_norm(tiles.tiles, gamma, beta, epsilon, tiles.tiles, one.context);
  from_tiles(tiles.tiles, y);
}

void omnisparse_activate(float* x, int count, int activation) {
  OneThread one;
  Owned tiles(1, count, 32, x);
  activate(tiles.tiles, static_cast<Activation>(activation), one.context);
  from_tiles(tiles.tiles, x);
}

void omnisparse_log_softmax(const float* x, int frames, int channels, float* y) {
  OneThread one;
  Owned tiles(channels, frames, width_for(frames), x);
  log_softmax(tiles.tiles, one.context);
  from_tiles(tiles.tiles, y);
}

void omnisparse_depthwise(const float* x, int frames, int channels, const float* weight,
                          const float* bias, int kernel, int before, float* past, float* y) {
  OneThread one;
  Owned in(channels, frames, width_for(frames), x);
  Owned out(channels, frames, in.tiles.width, nullptr);
  depthwise(in.tiles, weight, bias, kernel, before, past, past != nullptr, out.tiles,
            one.context);
  from_tiles(out.tiles, y);
}

void omnisparse_attend(const float* qkv, int frames, int keys, int heads, int width,
                       const float* past, const float* positions, const float* bias_u,
                       const float* bias_v, int threads, float* y) {
  ThreadPool pool(threads);
  Arena scratch;
  Context context{&pool, &scratch};
  const int size = heads * width, before = keys - frames;
  Owned in(3 * size, frames, width_for(frames), qkv);
  Owned out(size, frames, in.tiles.width, nullptr);
  const int capacity = (keys + 31) / 32 * 32;
  std::vector<float> key(static_cast<size_t>(size) * capacity), value(key.size());
  for (int t = 0; t < before; ++t)
    for (int c = 0; c < size; ++c) {
      key[static_cast<size_t>(c) * capacity + t] = past[static_cast<size_t>(t) * 2 * size + c];
      value[static_cast<size_t>(c) * capacity + t] =
          past[static_cast<size_t>(t) * 2 * size + size + c];
    }
  KeyValues kv{key.data(), value.data(), heads, width, capacity, before};
  append_keys(in.tiles, 0, frames, kv);
  // room on both sides for the band of the last eight queries
  const long zero = keys + 15, stride = 2L * keys + 64;
  std::vector<float> rows;
  if (positions != nullptr) {
    rows.assign(static_cast<size_t>(size) * stride, 0.0f);
    for (int m = 0; m < 2 * keys - 1; ++m)
      for (int c = 0; c < size; ++c)
        rows[static_cast<size_t>(c) * stride + zero - (keys - 1) + m] =
            positions[static_cast<size_t>(m) * size + c];
  }
  attend(in.tiles, 0, frames, kv, positions != nullptr ? rows.data() : nullptr, stride, zero,
         bias_u, bias_v, false, out.tiles, context);
  from_tiles(out.tiles, y);
}

}  // extern "C"
