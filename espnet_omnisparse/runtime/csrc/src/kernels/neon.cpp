// NEON, which every 64-bit ARM has.
#include "table.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace omnisparse {
namespace {

const char kName[] = "neon";
constexpr int kGroup = 2;
constexpr bool kOffset = false;
using Number = int16_t;  // multiplied and added to 32 bits: exact
using Weight = int16_t;

#include "vectors_neon.h"

using Wide = Narrow;
using WideWhole = Narrow;

template <class V>
struct Whole {
  struct Sum {
    int32x4_t low, high;
  };
  using Operand = int16x8x2_t;  // a column each
  static Sum set(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
  template <int kVectors, bool kIndexed>
  static void operands(const Number* x, const uint16_t* columns, int k, int width, int lane,
                       Operand* out) {
    for (int v = 0; v < kVectors; ++v) {
      const long n = lane + 8 * v;
      if (kIndexed) {
        out[v].val[0] = vld1q_s16(x + static_cast<long>(columns[k]) * width + n);
        out[v].val[1] = vld1q_s16(x + static_cast<long>(columns[k + 1]) * width + n);
      } else {
        out[v] = vld2q_s16(x + static_cast<long>(k) * width + 2 * n);
      }
    }
  }
  static const Weight* weights(const Weight* w) { return w; }
  static Sum dot(Sum sum, Operand x, const Weight* w) {
    for (int j = 0; j < 2; ++j) {
      sum.low = vmlal_n_s16(sum.low, vget_low_s16(x.val[j]), w[j]);
      sum.high = vmlal_n_s16(sum.high, vget_high_s16(x.val[j]), w[j]);
    }
    return sum;
  }
  static Narrow to_float(Sum sum) {
    return {vcvtq_f32_s32(sum.low), vcvtq_f32_s32(sum.high)};
  }
};

void transpose8(const float* x, long stride_x, float* y, long stride_y) {
  for (int r = 0; r < 8; r += 4) {
    for (int c = 0; c < 8; c += 4) {
      const float* from = x + r * stride_x + c;
      const float32x4x2_t a =
          vtrnq_f32(vld1q_f32(from), vld1q_f32(from + stride_x));
      const float32x4x2_t b =
          vtrnq_f32(vld1q_f32(from + 2 * stride_x), vld1q_f32(from + 3 * stride_x));
      float* to = y + c * stride_y + r;
      for (int i = 0; i < 2; ++i) {
        vst1q_f32(to + i * stride_y,
                  vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i])));
        vst1q_f32(to + (i + 2) * stride_y,
                  vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i])));
      }
    }
  }
}

}  // namespace

#include "body.h"

const KernelTable* neon_table() { return &kTable; }

}  // namespace omnisparse

#else
namespace omnisparse {
const KernelTable* neon_table() { return nullptr; }
}  // namespace omnisparse
#endif
