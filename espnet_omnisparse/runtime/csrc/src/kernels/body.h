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
#include "products.h"

// ---- what becomes of a product ----------------------------------------------------------

// Where it goes: into a tile, onto one, or to places.
struct IntoTile {
  float* y;
  int width;
  template <class V>
  void store(int row, int lane, V value) const {
    V::store(y + static_cast<long>(row) * width + lane, value);
  }
};

struct OntoTile {  // y += factor * value
  float* y;
  int width;
  float factor;
  template <class V>
  void store(int row, int lane, V value) const {
    float* at = y + static_cast<long>(row) * width + lane;
    V::store(at, V::fma(V::set(factor), value, V::load(at)));
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

void finish_add(const float* out, const float* bias, int rows, int width, float factor,
                float* y) {
  finish_of(Epilogue::kStore, out, bias, rows, width, OntoTile{y, width, factor});
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
