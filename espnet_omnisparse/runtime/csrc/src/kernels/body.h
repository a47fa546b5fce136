// The loops, for whatever vectors the including file has defined:
//
//   Wide, Narrow   vectors of floats, Narrow of 8 lanes (they may be the same)
//   Whole          integer accumulators beside them: Whole<Vector>::Operand, zero, dense, operands, weights,
//                  dot, to_float
//   kGroup, Number, kOffset   of quantised activations
//
// All of it is in an unnamed namespace and uses no inline function of the library: the linker
// must not share what was compiled for one instruction set with another.

namespace {

#include "functions.h"

// ---- products -------------------------------------------------------------------------

// Where the inputs of a product are: in a tile, or in windows.
struct InTile {
  const float* x;
  long stride;
  template <class V>
  V load(long column, int lane) const {
    return V::load(x + column * stride + lane);
  }
};

struct InWindow {
  const Window& x;
  template <class V>
  V load(long column, int lane) const {
    return V::load_eights(x.eights + lane / 8, x.offset[column]);
  }
};

// Where its outputs go: into a tile, or to places.
struct IntoTile {
  float* y;
  int width;
  template <class V>
  void store(int row, int lane, V value) const {
    V::store(y + static_cast<long>(row) * width + lane, value);
  }
};

struct IntoPlaces {
  const Places& y;
  int first;  // row
  template <class V>
  void store(int row, int lane, V value) const {
    V::store_eights(y.eights + lane / 8, (first + row) * y.apart, value);
  }
};

template <int kRows, int kVectors, int kChains, bool kIndexed, class V, class Inputs>
inline void product_rows(const float* w, const uint16_t* columns, int count,
                         const Inputs& inputs, int lane, float* out, long out_stride) {
  V sum[kChains][kRows][kVectors];
  for (int u = 0; u < kChains; ++u)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[u][r][v] = V::set(0.0f);
  int k = 0;
  for (; k + kChains <= count; k += kChains) {
    for (int u = 0; u < kChains; ++u) {
      const long column = kIndexed ? columns[k + u] : k + u;
      const float* weights = w + static_cast<long>(k + u) * kRows;
      V lanes[kVectors];
      for (int v = 0; v < kVectors; ++v)
        lanes[v] = inputs.template load<V>(column, lane + v * V::kLanes);
      for (int r = 0; r < kRows; ++r) {
        const V weight = V::set(weights[r]);
        for (int v = 0; v < kVectors; ++v)
          sum[u][r][v] = V::fma(weight, lanes[v], sum[u][r][v]);
      }
    }
  }
  for (; k < count; ++k) {
    const long column = kIndexed ? columns[k] : k;
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v)
        sum[0][r][v] =
            V::fma(V::set(w[static_cast<long>(k) * kRows + r]),
                   inputs.template load<V>(column, lane + v * V::kLanes), sum[0][r][v]);
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      V total = sum[0][r][v];
      for (int u = 1; u < kChains; ++u) total = total + sum[u][r][v];
      V::store(out + r * out_stride + lane + v * V::kLanes, total);
    }
}

template <int kVectors, class V, class Inputs>
inline void product_lanes(const RowBlock& block, const Inputs& x, int lane, int width,
                          float* out) {
  const float* w = static_cast<const float*>(block.weights);
  const uint16_t* columns = block.columns;
  const int count = block.count;
  if (columns == nullptr) {  // only blocks of 8 rows are dense
    product_rows<8, kVectors, 1, false, V>(w, nullptr, count, x, lane, out, width);
  } else if (block.rows == 8) {
    product_rows<8, kVectors, 1, true, V>(w, columns, count, x, lane, out, width);
  } else if (block.rows == 4) {
    product_rows<4, kVectors, kVectors == 1 ? 2 : 1, true, V>(w, columns, count, x, lane, out,
                                                              width);
  } else {
    product_rows<1, kVectors, 4, true, V>(w, columns, count, x, lane, out, width);
  }
}

template <class Inputs>
inline void product_of(const RowBlock& block, const Inputs& x, int width, float* out) {
  constexpr int kWide = Wide::kLanes;
  if (width == 8) {
    product_lanes<1, Narrow>(block, x, 0, 8, out);
  } else if (kWide == 16 && width == 32) {
    product_lanes<2, Wide>(block, x, 0, 32, out);
  } else {
    for (int lane = 0; lane < width; lane += kWide)
      product_lanes<1, Wide>(block, x, lane, width, out);
  }
}

void product(const RowBlock& block, const float* x, int width, float* out) {
  product_of(block, InTile{x, width}, width, out);
}

void product_window(const RowBlock& block, const Window& x, int width, float* out) {
  product_of(block, InWindow{x}, width, out);
}

template <int kRows, int kVectors, bool kIndexed, class V>
inline void product8_rows(const RowBlock& block, const Quantised& x, int width, int lane,
                          const int32_t* sum, const float* scale, float* out) {
  using W = Whole<V>;
  typename W::Sum total[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) total[r][v] = W::set(kOffset ? -128 * sum[r] : 0);
  const Number* data = static_cast<const Number*>(x.data);
  const Weight* weights = static_cast<const Weight*>(block.weights);
  for (int k = 0; k < block.count; k += kGroup) {
    typename W::Operand lanes[kVectors];
    W::template operands<kVectors, kIndexed>(data, block.columns, k, width, lane, lanes);
    for (int r = 0; r < kRows; ++r) {
      const auto weight = W::weights(weights + (static_cast<long>(k) * kRows + r * kGroup));
      for (int v = 0; v < kVectors; ++v) total[r][v] = W::dot(total[r][v], lanes[v], weight);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const int at = lane + v * V::kLanes;
      const V value = W::to_float(total[r][v]);
      V::store(out + r * width + at, value * (V::load(x.scale + at) * V::set(scale[r])));
    }
}

template <int kVectors, class V>
inline void product8_lanes(const RowBlock& block, const Quantised& x, int width, int lane,
                           const int32_t* sum, const float* scale, float* out) {
  if (block.columns == nullptr) {
    product8_rows<8, kVectors, false, V>(block, x, width, lane, sum, scale, out);
  } else if (block.rows == 8) {
    product8_rows<8, kVectors, true, V>(block, x, width, lane, sum, scale, out);
  } else if (block.rows == 4) {
    product8_rows<4, kVectors, true, V>(block, x, width, lane, sum, scale, out);
  } else {
    product8_rows<1, kVectors, true, V>(block, x, width, lane, sum, scale, out);
  }
}

void product8(const RowBlock& block, const Quantised& x, int width, const int32_t* sum,
              const float* scale, float* out) {
  constexpr int kWide = WideWhole::kLanes;
  if (width == 8) {
    product8_lanes<1, Narrow>(block, x, 8, 0, sum, scale, out);
  } else if (kWide == 16 && width == 32) {
    product8_lanes<2, WideWhole>(block, x, 32, 0, sum, scale, out);
  } else {
    for (int lane = 0; lane < width; lane += kWide)
      product8_lanes<1, WideWhole>(block, x, width, lane, sum, scale, out);
  }
}

template <class V>
inline void largest_lanes(const float* x, int channels, long apart, float* most) {
  // by the bits: NaN is above infinity, and both stay
  typename V::Bits largest = V::abs_bits(V::load(most));
  for (int c = 0; c < channels; ++c)
    largest = V::max_bits(largest, V::abs_bits(V::load(x + c * apart)));
  V::store(most, V::from_bits(largest));
}

void largest_of(const float* x, int channels, long apart, int lanes, float* most) {
  int lane = 0;
  for (; lane + Wide::kLanes <= lanes; lane += Wide::kLanes)
    largest_lanes<Wide>(x + lane, channels, apart, most + lane);
  for (; lane < lanes; lane += 8)
    largest_lanes<Narrow>(x + lane, channels, apart, most + lane);
}

template <class V, class Inputs>
inline void quantise_lanes(const Inputs& x, int inputs, int width, int lane, bool dense,
                           typename V::Bits largest, const Quantised& q) {
  const V most = V::max(V::from_bits(largest), V::set(1e-30f));
  const V safe = V::select_finite(V::from_bits(largest), most, V::set(1.0f));
  const V scale = safe * V::set(1.0f / 127.0f);
  const V inverse = V::set(127.0f) / safe;
  V::store(q.scale + lane, V::select_finite(V::from_bits(largest), scale, V::nan()));
  Number* data = static_cast<Number*>(q.data);
  if (!dense) {
    for (int k = 0; k < inputs; ++k) {
      const V value = x.template load<V>(k, lane);
      V::store_numbers(data + static_cast<long>(k) * width + lane, V::number(value, inverse));
    }
    return;
  }
  for (int k = 0; k < inputs; k += kGroup) {
    typename V::Bits word = V::zero_bits();
    for (int j = kGroup - 1; j >= 0; --j) {
      typename V::Bits one = V::zero_bits();
      if (k + j < inputs)
        one = V::low(V::number(x.template load<V>(k + j, lane), inverse));
      word = V::or_bits(V::template shift_left<8 * sizeof(Number)>(word), one);
    }
    V::store_bits(data + (static_cast<long>(k) * width + lane * kGroup), word);
  }
}

template <class Inputs>
inline void quantise_of(const Inputs& x, int inputs, int width, bool dense,
                        const float* largest, const Quantised& q) {
  int lane = 0;
  for (; lane + Wide::kLanes <= width; lane += Wide::kLanes)
    quantise_lanes<Wide>(x, inputs, width, lane, dense,
                         Wide::abs_bits(Wide::load(largest + lane)), q);
  for (; lane < width; lane += 8)
    quantise_lanes<Narrow>(x, inputs, width, lane, dense,
                           Narrow::abs_bits(Narrow::load(largest + lane)), q);
}

void quantise(const float* x, int inputs, int width, bool dense, const Quantised& q) {
  alignas(64) float largest[32] = {};
  largest_of(x, inputs, width, width, largest);
  quantise_of(InTile{x, width}, inputs, width, dense, largest, q);
}

void quantise_window(const Window& x, int inputs, int width, bool dense, const Quantised& q) {
  quantise_of(InWindow{x}, inputs, width, dense, x.largest, q);
}

template <int kVectors, class V>
inline void rows8_lanes(const float* a, long step_row, long step, int terms, const float* x,
                        long stride, float* out, long out_stride) {
  V sum[8][kVectors];
  for (int r = 0; r < 8; ++r)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = V::set(0.0f);
  for (int k = 0; k < terms; ++k) {
    V lanes[kVectors];
    for (int v = 0; v < kVectors; ++v) lanes[v] = V::load(x + k * stride + v * V::kLanes);
    for (int r = 0; r < 8; ++r) {
      const V weight = V::set(a[r * step_row + k * step]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = V::fma(weight, lanes[v], sum[r][v]);
    }
  }
  for (int r = 0; r < 8; ++r)
    for (int v = 0; v < kVectors; ++v)
      V::store(out + r * out_stride + v * V::kLanes, sum[r][v]);
}

void rows8(const float* a, long step_row, long step, int terms, const float* x, long stride,
           int count, float* out, long out_stride) {
  constexpr int kWide = Wide::kLanes, kVectors = kWide == 16 ? 2 : 1;
  int n = 0;
  for (; n + kVectors * kWide <= count; n += kVectors * kWide)
    rows8_lanes<kVectors, Wide>(a, step_row, step, terms, x + n, stride, out + n, out_stride);
  for (; n + kWide <= count; n += kWide)
    rows8_lanes<1, Wide>(a, step_row, step, terms, x + n, stride, out + n, out_stride);
  for (; n < count; n += 8)
    rows8_lanes<1, Narrow>(a, step_row, step, terms, x + n, stride, out + n, out_stride);
}

// ---- what becomes of a product ----------------------------------------------------------

template <class V>
inline V finished(Epilogue epilogue, V value) {
  switch (epilogue) {
    case Epilogue::kRelu:
      return activated(value, Activation::kRelu);
    case Epilogue::kSwish:
      return activated(value, Activation::kSwish);
    case Epilogue::kTanh:
      return activated(value, Activation::kTanh);
    case Epilogue::kGelu:
      return activated(value, Activation::kGelu);
    case Epilogue::kHardTanh:
      return activated(value, Activation::kHardTanh);
    case Epilogue::kSelu:
      return activated(value, Activation::kSelu);
    default:
      return value;
  }
}

template <class V, class Outputs>
inline void finish_lanes(Epilogue epilogue, const float* out, const float* bias, int rows,
                         int width, int lane, const Outputs& y) {
  for (int r = 0; r < rows; ++r) {
    const V value = V::load(out + static_cast<long>(r) * width + lane) + V::set(bias[r]);
    y.store(r, lane, finished(epilogue, value));
  }
}

template <class Outputs>
inline void finish_of(Epilogue epilogue, const float* out, const float* bias, int rows,
                      int width, const Outputs& y) {
  int lane = 0;
  for (; lane + Wide::kLanes <= width; lane += Wide::kLanes)
    finish_lanes<Wide>(epilogue, out, bias, rows, width, lane, y);
  for (; lane < width; lane += 8)
    finish_lanes<Narrow>(epilogue, out, bias, rows, width, lane, y);
}

void finish(Epilogue epilogue, const float* out, const float* bias, int rows, int width,
            float* y) {
  finish_of(epilogue, out, bias, rows, width, IntoTile{y, width});
}

void finish_places(Epilogue epilogue, const float* out, const float* bias, int rows, int width,
                   int first, const Places& y) {
  finish_of(epilogue, out, bias, rows, width, IntoPlaces{y, first});
}

template <class V>
inline void finish_add_lanes(const float* out, const float* bias, int rows, int width, int lane,
                             float factor, float* y) {
  for (int r = 0; r < rows; ++r) {
    const long at = static_cast<long>(r) * width + lane;
    const V value = V::load(out + at) + V::set(bias[r]);
    V::store(y + at, V::fma(V::set(factor), value, V::load(y + at)));
  }
}

void finish_add(const float* out, const float* bias, int rows, int width, float factor,
                float* y) {
  int lane = 0;
  for (; lane + Wide::kLanes <= width; lane += Wide::kLanes)
    finish_add_lanes<Wide>(out, bias, rows, width, lane, factor, y);
  for (; lane < width; lane += 8)
    finish_add_lanes<Narrow>(out, bias, rows, width, lane, factor, y);
}

template <class V>
inline void gate_lanes(const float* a, const float* b, const float* bias_a, const float* bias_b,
                       int rows, int width, int lane, float* y) {
  for (int r = 0; r < rows; ++r) {
    const long at = static_cast<long>(r) * width + lane;
    const V open = sigmoid(V::load(b + at) + V::set(bias_b[r]));
    V::store(y + at, (V::load(a + at) + V::set(bias_a[r])) * open);
  }
}

void gate(const float* a, const float* b, const float* bias_a, const float* bias_b, int rows,
          int width, float* y) {
  int lane = 0;
  for (; lane + Wide::kLanes <= width; lane += Wide::kLanes)
    gate_lanes<Wide>(a, b, bias_a, bias_b, rows, width, lane, y);
  for (; lane < width; lane += 8)
    gate_lanes<Narrow>(a, b, bias_a, bias_b, rows, width, lane, y);
}

// ---- the rest ---------------------------------------------------------------------------

template <class V>
inline void norm_lanes(const float* x, const float* gamma, const float* beta, float epsilon,
                       int channels, int width, int lane, float* y) {
  V sum = V::set(0.0f);
  for (int c = 0; c < channels; ++c) sum = sum + V::load(x + static_cast<long>(c) * width + lane);
  const V mean = sum * V::set(1.0f / static_cast<float>(channels));
  V squares = V::set(0.0f);
  for (int c = 0; c < channels; ++c) {
    const V apart = V::load(x + static_cast<long>(c) * width + lane) - mean;
    squares = V::fma(apart, apart, squares);
  }
  const V variance = squares * V::set(1.0f / static_cast<float>(channels));
  const V scale = V::set(1.0f) / V::sqrt(variance + V::set(epsilon));
  for (int c = 0; c < channels; ++c) {
    const long at = static_cast<long>(c) * width + lane;
    const V apart = (V::load(x + at) - mean) * scale;
    V::store(y + at, V::fma(apart, V::set(gamma[c]), V::set(beta[c])));
  }
}

void norm(const float* x, const float* gamma, const float* beta, float epsilon, int channels,
          int width, float* y) {
  int lane = 0;
  for (; lane + Wide::kLanes <= width; lane += Wide::kLanes)
    norm_lanes<Wide>(x, gamma, beta, epsilon, channels, width, lane, y);
  for (; lane < width; lane += 8)
    norm_lanes<Narrow>(x, gamma, beta, epsilon, channels, width, lane, y);
}

void activate_all(float* x, size_t count, Activation activation) {
  for (size_t n = 0; n < count; n += 8)
    Narrow::store(x + n, activated(Narrow::load(x + n), activation));
}

void convolve(const float* x, const float* weight, float bias, int kernel, int count, float* y) {
  int t = 0;
  for (; t + 2 * Wide::kLanes <= count; t += 2 * Wide::kLanes) {
    Wide first = Wide::set(bias), second = first;
    for (int k = 0; k < kernel; ++k) {
      const Wide w = Wide::set(weight[k]);
      first = Wide::fma(w, Wide::load(x + t + k), first);
      second = Wide::fma(w, Wide::load(x + t + k + Wide::kLanes), second);
    }
    Wide::store(y + t, first);
    Wide::store(y + t + Wide::kLanes, second);
  }
  for (; t < count; t += 8) {
    Narrow sum = Narrow::set(bias);
    for (int k = 0; k < kernel; ++k)
      sum = Narrow::fma(Narrow::set(weight[k]), Narrow::load(x + t + k), sum);
    Narrow::store(y + t, sum);
  }
}

void add(float* x, const float* y, int count) {
  int n = 0;
  for (; n + 8 <= count; n += 8)
    Narrow::store(x + n, Narrow::load(x + n) + Narrow::load(y + n));
  for (; n < count; ++n) x[n] += y[n];
}

void multiply(float* x, const float* y, size_t count) {
  for (size_t n = 0; n < count; n += 8)
    Narrow::store(x + n, Narrow::load(x + n) * Narrow::load(y + n));
}

void softmax(float* x, int count, int padded, float factor) {
  constexpr int kLanes = Wide::kLanes;
  // what is beyond becomes nothing beside a sum of at least 1
  for (int n = count; n < padded; ++n) x[n] = -3.0e38f;
  float lanes[kLanes];
  Wide most = Wide::load(x);
  for (int n = kLanes; n < count; n += kLanes) most = Wide::max(most, Wide::load(x + n));
  Wide::store(lanes, most);
  float shift = lanes[0];
  for (int i = 1; i < kLanes; ++i) shift = lanes[i] > shift ? lanes[i] : shift;
  shift *= factor;
  Wide sum = Wide::set(0.0f);
  for (int n = 0; n < count; n += kLanes) {
    const Wide value =
        exponential(Wide::fma(Wide::set(factor), Wide::load(x + n), Wide::set(-shift)));
    Wide::store(x + n, value);
    sum = sum + value;
  }
  Wide::store(lanes, sum);
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += lanes[i];
  const Wide inverse = Wide::set(1.0f / total);
  for (int n = 0; n < count; n += kLanes) Wide::store(x + n, Wide::load(x + n) * inverse);
  for (int n = count; n < padded; ++n) x[n] = 0.0f;
}

void log_softmax_all(float* x, int channels, int width) {
  for (int lane = 0; lane < width; lane += 8) {
    Narrow most = Narrow::load(x + lane);
    for (int c = 1; c < channels; ++c)
      most = Narrow::max(most, Narrow::load(x + static_cast<long>(c) * width + lane));
    Narrow sum = Narrow::set(0.0f);
    for (int c = 0; c < channels; ++c)
      sum = sum + exponential(Narrow::load(x + static_cast<long>(c) * width + lane) - most);
    const Narrow shift = most + logarithm(sum);
    for (int c = 0; c < channels; ++c) {
      float* at = x + static_cast<long>(c) * width + lane;
      Narrow::store(at, Narrow::load(at) - shift);
    }
  }
}

void log_floor_all(float* x, size_t count, float floor) {
  for (size_t n = 0; n < count; n += 8)
    Narrow::store(x + n, logarithm(Narrow::max(Narrow::set(floor), Narrow::load(x + n))));
}

const KernelTable kTable = {
    kName,           kGroup,       static_cast<int>(sizeof(Number)),
    kOffset,         product,      product_window,
    product8,        quantise,     quantise_window,
    largest_of,      finish,       finish_places,
    finish_add,      gate,         norm,
    activate_all,    convolve,     rows8,
    softmax,         log_softmax_all, transpose8,
    log_floor_all,   add,          multiply,
};

}  // namespace
