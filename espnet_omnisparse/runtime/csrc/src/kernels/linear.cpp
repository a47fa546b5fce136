// Linear layers: packed once, by what their zeros allow.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "ops.h"
#include "table.h"

namespace omnisparse {

float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0) {  // below the normal ones: a multiple of 2^-24
    const float small = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -small : small;
  }
  const uint32_t wide = exponent == 31 ? 0xffu : exponent + 112;
  const uint32_t bits = sign | wide << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

namespace {

float value_at(const WeightView& view, size_t index) {
  switch (view.type) {
    case DType::kF32:
      return static_cast<const float*>(view.values)[index];
    case DType::kF16:
      return from_half(static_cast<const uint16_t*>(view.values)[index]);
    default:
      return static_cast<const int8_t*>(view.values)[index];
  }
}

// Whether a product of a matrix's values and its inputs can leave a column out.
struct Dense {
  int rows = 0, columns = 0;
  std::vector<float> values;  // int8: whole numbers
  std::vector<float> scale;   // of rows
  const float* row(int r) const { return values.data() + static_cast<size_t>(r) * columns; }
};

bool column_used(const Dense& matrix, const int32_t* order, int rows, int column) {
  for (int r = 0; r < rows; ++r) {
    if (order[r] >= 0 && matrix.row(order[r])[column] != 0.0f) return true;
  }
  return false;
}

size_t columns_used(const Dense& matrix, const std::vector<int32_t>& order, int block) {
  size_t used = 0;
  for (size_t first = 0; first < order.size(); first += block)
    for (int c = 0; c < matrix.columns; ++c)
      used += column_used(matrix, &order[first], block, c);
  return used;
}

}  // namespace

std::vector<float> numbers_of(const WeightView& view) {
  const size_t columns = view.columns, count = view.rows * columns;
  std::vector<float> numbers(count, 0.0f);
  if (view.block_rows == 0) {
    for (size_t i = 0; i < count; ++i) numbers[i] = value_at(view, i);
    return numbers;
  }
  const int height = view.block_rows, width = view.block_columns;
  const int down = (view.rows + height - 1) / height;
  for (int block_row = 0; block_row < down; ++block_row) {
    for (int k = view.block_begin[block_row]; k < view.block_begin[block_row + 1]; ++k) {
      for (int i = 0; i < height * width; ++i) {
        const int r = block_row * height + i / width;
        const int c = view.block_column[k] * width + i % width;
        if (r >= view.rows || c >= view.columns) continue;
        numbers[r * columns + c] = value_at(view, static_cast<size_t>(k) * height * width + i);
      }
    }
  }
  return numbers;
}

Linear::Linear(const std::vector<WeightView>& stacked, const std::vector<const float*>& biases,
               bool gated)
    : table_(&kernels()), gated_(gated) {
  if (stacked.empty() || stacked.size() != biases.size())
    throw std::invalid_argument("a linear layer has a bias, or null, for each matrix");
  Dense matrix;
  matrix.columns = inputs_ = stacked[0].columns;
  int8_ = stacked[0].type == DType::kI8;
  for (const WeightView& view : stacked) {
    if (view.columns != inputs_ || (view.type == DType::kI8) != int8_)
      throw std::invalid_argument("stacked matrices have the same inputs and kind");
    rows_ += view.rows;
  }
  if (gated && rows_ % 2 != 0) throw std::invalid_argument("gates need an even number of rows");
  matrix.rows = rows_;
  std::vector<float> bias(rows_, 0.0f);
  int first = 0;
  for (size_t i = 0; i < stacked.size(); ++i) {
    const WeightView& view = stacked[i];
    const std::vector<float> numbers = numbers_of(view);
    matrix.values.insert(matrix.values.end(), numbers.begin(), numbers.end());
    for (int r = 0; r < view.rows; ++r)
      matrix.scale.push_back(view.scale != nullptr ? view.scale[r] : 1.0f);
    if (biases[i] != nullptr) std::copy_n(biases[i], view.rows, bias.begin() + first);
    first += view.rows;
  }

  // blocks of 8 rows; of a gate, 8 rows and the 8 that open them, in turn
  if (gated) {
    const int half = rows_ / 2;
    for (int r = 0; r < half; r += 8)
      for (int side = 0; side < 2; ++side)
        for (int i = 0; i < 8; ++i) order_.push_back(r + i < half ? side * half + r + i : -1);
  } else {
    for (int r = 0; r < (rows_ + 7) / 8 * 8; ++r) order_.push_back(r < rows_ ? r : -1);
  }
  const size_t whole = order_.size() / 8 * static_cast<size_t>(inputs_);
  const size_t by8 = columns_used(matrix, order_, 8);
  indexed_ = inputs_ <= 65536 && by8 * 100 < whole * 85;
  if (indexed_ && !gated) {
    // measured: a column costs about as much in blocks of 4 as 0.6 of one of 8, 0.35 singly
    const double by4 = 0.6 * static_cast<double>(columns_used(matrix, order_, 4));
    const double by1 = 0.35 * static_cast<double>(columns_used(matrix, order_, 1));
    if (std::min(by4, by1) < static_cast<double>(by8)) block_ = by4 < by1 ? 4 : 1;
  }

  const int group = int8_ ? table_->group : 1;
  const bool bytes = int8_ && table_->quantised_bytes == 1;
  begin_.push_back(0);
  std::vector<int> used;
  for (size_t row = 0; row < order_.size(); row += block_) {
    used.clear();
    for (int c = 0; c < inputs_; ++c) {
      if (!indexed_ || column_used(matrix, &order_[row], block_, c)) used.push_back(c);
    }
    while (used.size() % group != 0) used.push_back(-1);
    for (size_t k = 0; k < used.size(); k += group) {
      for (int i = 0; i < block_; ++i) {
        for (int j = 0; j < group; ++j) {
          const int r = order_[row + i], c = used[k + j];
          const float value = r < 0 || c < 0 ? 0.0f : matrix.row(r)[c];
          if (!int8_)
            values_.push_back(value);
          else if (bytes)
            values8_.push_back(static_cast<int8_t>(value));
          else
            values16_.push_back(static_cast<int16_t>(value));
        }
      }
    }
    if (indexed_)
      for (int c : used) columns_.push_back(static_cast<uint16_t>(std::max(c, 0)));
    begin_.push_back(begin_.back() + static_cast<int32_t>(used.size()));
  }
  for (int32_t r : order_) {
    bias_.push_back(r < 0 ? 0.0f : bias[r]);
    scale_.push_back(r < 0 ? 0.0f : matrix.scale[r]);
    int32_t sum = 0;
    if (int8_ && r >= 0)
      for (int c = 0; c < inputs_; ++c) sum += static_cast<int32_t>(matrix.row(r)[c]);
    sum_.push_back(sum);
  }
}

size_t Linear::bytes() const {
  return values_.size() * sizeof(float) + values16_.size() * 2 + values8_.size() +
         columns_.size() * 2 + (begin_.size() + order_.size() + sum_.size()) * 4 +
         (scale_.size() + bias_.size()) * 4;
}

// The inputs of one tile: floats, in it or in windows, or what they are quantised to.
struct Inputs {
  const float* tile = nullptr;
  const Window* window = nullptr;
  Quantised quantised{};
};

struct Outputs {
  float* tile = nullptr;
  const Places* places = nullptr;
};

// What `run` does to a part of the blocks of rows of one tile.
struct LinearParts {
  const Linear& layer;
  const KernelTable& table;
  int width;

  size_t quantised_size() const {
    const int group = table.group;
    return static_cast<size_t>((layer.inputs_ + group - 1) / group) * group * width *
           table.quantised_bytes;
  }

  void quantise(const Inputs& x) const {
    if (!layer.int8_) return;
    if (x.window != nullptr)
      table.quantise_window(*x.window, layer.inputs_, width, !layer.indexed_, x.quantised);
    else
      table.quantise(x.tile, layer.inputs_, width, !layer.indexed_, x.quantised);
  }

  // A block of rows as the kernels take it.
  RowBlock block(size_t number) const {
    const int32_t begin = layer.begin_[number];
    const size_t at = static_cast<size_t>(begin) * layer.block_;
    const void* weights = layer.values_.data() + at;
    if (layer.int8_) {
      weights = layer.values8_.empty() ? static_cast<const void*>(layer.values16_.data() + at)
                                       : static_cast<const void*>(layer.values8_.data() + at);
    }
    return {weights, layer.indexed_ ? layer.columns_.data() + begin : nullptr,
            layer.begin_[number + 1] - begin, layer.block_};
  }

  // [8][width] outputs, without bias
  void product(size_t eight, const Inputs& x, float* out) const {
    const size_t per = 8 / layer.block_;
    for (size_t i = 0; i < per; ++i) {
      const size_t number = eight * per + i, row = number * layer.block_;
      float* to = out + i * layer.block_ * width;
      if (layer.int8_)
        table.product8(block(number), x.quantised, width, &layer.sum_[row], &layer.scale_[row],
                       to);
      else if (x.window != nullptr)
        table.product_window(block(number), *x.window, width, to);
      else
        table.product(block(number), x.tile, width, to);
    }
  }

  void run(size_t first, size_t last, const Inputs& x, Epilogue epilogue, float factor,
           const Outputs& y) const {
    alignas(64) float out[2][8 * 32];
    const int step = layer.gated_ ? 2 : 1;
    for (size_t eight = first * step; eight < last * step; eight += step) {
      product(eight, x, out[0]);
      const int row = layer.order_[eight * 8];
      const int rows = std::min(8, layer.outputs() - row);
      const float* bias = &layer.bias_[eight * 8];
      if (y.places != nullptr) {
        table.finish_places(epilogue, out[0], bias, rows, width, row, *y.places);
        continue;
      }
      float* to = y.tile + static_cast<size_t>(row) * width;
      if (layer.gated_) {
        product(eight + 1, x, out[1]);
        table.gate(out[0], out[1], bias, bias + 8, rows, width, to);
      } else if (epilogue == Epilogue::kAdd) {
        table.finish_add(out[0], bias, rows, width, factor, to);
      } else {
        table.finish(epilogue, out[0], bias, rows, width, to);
      }
    }
  }

  size_t count() const { return layer.order_.size() / (layer.gated_ ? 16 : 8); }

  // All blocks of one tile, a share for each thread.
  void share(const Inputs& x, Epilogue epilogue, float factor, const Outputs& y,
             ThreadPool& pool) const {
    quantise(x);
    const int threads = pool.threads();
    const size_t each = (count() + threads - 1) / threads;
    pool.each(threads, [&](int thread) {
      const size_t first = std::min(count(), thread * each);
      run(first, std::min(count(), first + each), x, epilogue, factor, y);
    });
  }
};

void Linear::run(const Tiles& x, const Tiles& y, Epilogue epilogue, float factor,
                 Context& context) const {
  if (x.channels != inputs_ || y.channels != outputs() || x.width != y.width ||
      (epilogue == Epilogue::kGate) != gated_)
    throw std::invalid_argument("a linear layer was run on tiles of another shape");
  Scope scope(*context.scratch);
  const KernelTable& table = *table_;
  const LinearParts parts{*this, table, x.width};
  const int tiles = x.count(), threads = context.pool->threads();
  const int at_once = int8_ ? std::min(tiles, threads) : 0;
  const size_t size = parts.quantised_size();
  unsigned char* data = context.scratch->take<unsigned char>(size * at_once);
  float* scale = context.scratch->take<float>(static_cast<size_t>(32) * at_once);
  const auto inputs = [&](int tile, int slot) {
    Inputs in{x.tile(tile)};
    if (int8_) in.quantised = {data + size * slot, scale + static_cast<size_t>(32) * slot};
    return in;
  };
  if (tiles < threads) {  // a share of the rows each
    for (int t = 0; t < tiles; ++t)
      parts.share(inputs(t, 0), epilogue, factor, {y.tile(t)}, *context.pool);
    return;
  }
  const int share = (tiles + threads - 1) / threads;  // of the tiles
  context.pool->each(threads, [&](int thread) {
    for (int t = thread * share; t < std::min(tiles, (thread + 1) * share); ++t) {
      const Inputs in = inputs(t, std::min(thread, at_once - 1));
      parts.quantise(in);
      parts.run(0, parts.count(), in, epilogue, factor, {y.tile(t)});
    }
  });
}

void Linear::run(const Window& x, const Places& y, Epilogue epilogue, Context& context) const {
  if (y.count < 1 || y.count > 4 || gated_ || epilogue == Epilogue::kAdd ||
      epilogue == Epilogue::kGate)
    throw std::invalid_argument("a linear layer was run on windows that it cannot take");
  Scope scope(*context.scratch);
  const LinearParts parts{*this, *table_, width_for(8 * y.count)};
  Inputs in{nullptr, &x};
  if (int8_)
    in.quantised = {context.scratch->take<unsigned char>(parts.quantised_size()),
                    context.scratch->take<float>(32)};
  parts.share(in, epilogue, 0.0f, {nullptr, &y}, *context.pool);
}

}  // namespace omnisparse
