// Plain C++: every CPU has it, and the others are tested against it.
#include <cmath>
#include <cstring>

#include "table.h"

namespace omnisparse {
namespace {

const char kName[] = "plain";
constexpr int kGroup = 2;
constexpr bool kOffset = false;
using Number = int16_t;  // as wide as two of them can be multiplied and added exactly
using Weight = int16_t;

struct Floats {
  static constexpr int kLanes = 8;
  struct Bits {
    int32_t lane[kLanes];
  };
  float lane[kLanes];

  template <class F>
  static Floats each(F f) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = f(i);
    return out;
  }
  static Floats set(float x) {
    return each([=](int) { return x; });
  }
  static Floats load(const float* x) {
    Floats out;
    std::memcpy(out.lane, x, sizeof(out.lane));
    return out;
  }
  static Floats load_eights(const float* const* x, long at) { return load(x[0] + at); }
  static void store(float* x, const Floats& a) { std::memcpy(x, a.lane, sizeof(a.lane)); }
  static void store_eights(float* const* x, long at, const Floats& a) { store(x[0] + at, a); }
  static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Floats max(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Floats min(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Floats abs(const Floats& a) {
    return each([&](int i) { return std::fabs(a.lane[i]); });
  }
  static Floats sqrt(const Floats& a) {
    return each([&](int i) { return std::sqrt(a.lane[i]); });
  }
  static Floats round(const Floats& a) {
    return each([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  static Floats reciprocal(const Floats& a) {
    return each([&](int i) { return 1.0f / a.lane[i]; });
  }
  static Floats nan() { return from_bits(bits_of(0x7fc00000)); }
  static Floats select_below(const Floats& a, const Floats& limit, const Floats& yes,
                             const Floats& no) {
    return each(
        [&](int i) { return a.lane[i] < limit.lane[i] ? yes.lane[i] : no.lane[i]; });
  }
  static Floats select_finite(const Floats& a, const Floats& yes, const Floats& no) {
    return each([&](int i) { return std::isfinite(a.lane[i]) ? yes.lane[i] : no.lane[i]; });
  }
  // a 2^n, n whole
  static Floats scale_by_power(const Floats& a, const Floats& n) {
    return each([&](int i) {
      const float whole = n.lane[i] == n.lane[i] ? n.lane[i] : 0.0f;
      const int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
      float power;
      std::memcpy(&power, &bits, sizeof(power));
      return a.lane[i] * power;
    });
  }
  static Floats split(const Floats& x, Floats& exponent) {
    Floats mantissa;
    for (int i = 0; i < kLanes; ++i) {
      uint32_t bits;
      std::memcpy(&bits, &x.lane[i], sizeof(bits));
      int e = static_cast<int>(bits >> 23) - 126;
      bits = (bits & 0x007fffffu) | 0x3f000000u;  // in [1/2, 1)
      float m;
      std::memcpy(&m, &bits, sizeof(m));
      if (m < 0.70710678f) {
        m += m;
        --e;
      }
      mantissa.lane[i] = m;
      exponent.lane[i] = static_cast<float>(e);
    }
    return mantissa;
  }

  static Bits bits_of(int32_t x) {
    Bits out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = x;
    return out;
  }
  static Bits zero_bits() { return bits_of(0); }
  static Bits abs_bits(const Floats& a) {
    Bits out;
    std::memcpy(out.lane, a.lane, sizeof(out.lane));
    for (int i = 0; i < kLanes; ++i) out.lane[i] &= 0x7fffffff;
    return out;
  }
  static Bits max_bits(const Bits& a, const Bits& b) {
    Bits out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return out;
  }
  static Bits or_bits(const Bits& a, const Bits& b) {
    Bits out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] | b.lane[i];
    return out;
  }
  template <int kBits>
  static Bits shift_left(const Bits& a) {
    Bits out;
    for (int i = 0; i < kLanes; ++i)
      out.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) << kBits);
    return out;
  }
  static Floats from_bits(const Bits& a) {
    Floats out;
    std::memcpy(out.lane, a.lane, sizeof(out.lane));
    return out;
  }
  static void store_bits(Number* x, const Bits& a) { std::memcpy(x, a.lane, sizeof(a.lane)); }
  // a * scale, rounded, in the low bits of each lane
  static Bits number(const Floats& a, const Floats& scale) {
    Bits out;
    for (int i = 0; i < kLanes; ++i) {
      const float x = a.lane[i] * scale.lane[i];
      out.lane[i] = x == x ? static_cast<int32_t>(std::nearbyint(x)) : 0;
    }
    return out;
  }
  static Bits low(Bits a) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] &= 0xffff;
    return a;
  }
  static void store_numbers(Number* x, const Bits& a) {
    for (int i = 0; i < kLanes; ++i) x[i] = static_cast<Number>(a.lane[i]);
  }

  friend Floats operator+(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  friend Floats operator-(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  friend Floats operator*(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  friend Floats operator/(const Floats& a, const Floats& b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
};

using Wide = Floats;
using Narrow = Floats;
using WideWhole = Floats;

template <class V>
struct Whole {
  struct Sum {
    int32_t lane[8];
  };
  struct Operand {
    int16_t lane[8][2];
  };
  static Sum set(int32_t x) {
    Sum sum;
    for (int i = 0; i < 8; ++i) sum.lane[i] = x;
    return sum;
  }
  template <int kVectors, bool kIndexed>
  static void operands(const Number* x, const uint16_t* columns, int k, int width, int lane,
                       Operand* out) {
    for (int v = 0; v < kVectors; ++v)
      for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 2; ++j) {
          const long n = lane + 8 * v + i;
          out[v].lane[i][j] =
              kIndexed ? x[static_cast<long>(columns[k + j]) * width + n]
                       : x[static_cast<long>(k) * width + 2 * n + j];
        }
  }
  static const Weight* weights(const Weight* w) { return w; }
  static Sum dot(Sum sum, const Operand& x, const Weight* w) {
    for (int i = 0; i < 8; ++i) sum.lane[i] += x.lane[i][0] * w[0] + x.lane[i][1] * w[1];
    return sum;
  }
  static V to_float(const Sum& sum) {
    return V::each([&](int i) { return static_cast<float>(sum.lane[i]); });
  }
};

void transpose8(const float* x, long stride_x, float* y, long stride_y) {
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c) y[c * stride_y + r] = x[r * stride_x + c];
}

}  // namespace

#include "body.h"

const KernelTable* plain_table() { return &kTable; }

}  // namespace omnisparse
