// Products of weights and activations, and what int8 ones begin with. Included by body.h, in
// its unnamed namespace.

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
