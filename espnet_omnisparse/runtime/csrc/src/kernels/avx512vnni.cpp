// AVX-512 with VNNI, and VBMI to bring columns side by side; x86 alone.
#include "table.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "target.h"

TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")

namespace omnisparse {
namespace {

const char kName[] = "avx512vnni";
constexpr int kGroup = 4;
constexpr bool kOffset = true;  // one side of the product has no sign
using Number = uint8_t;
using Weight = int8_t;

#include "vectors_avx2.h"
#include "vectors_avx512.h"

using WideWhole = Wide;

// functions and no lambdas: GCC forgets the target of lambdas
inline __m128i load8(const uint8_t* x) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
}
inline __m128i load16(const uint8_t* x) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
}
inline __m256i load32(const uint8_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}

// Byte 4 i + j of the result is frame i of column j.
inline __m256i four_by_eight(const uint8_t* a, const uint8_t* b, const uint8_t* c,
                             const uint8_t* d) {
  const __m128i ab = _mm_unpacklo_epi8(load8(a), load8(b));
  const __m128i cd = _mm_unpacklo_epi8(load8(c), load8(d));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(ab, cd)),
                                 _mm_unpackhi_epi16(ab, cd), 1);
}

// The order that brings frame begin + i of column j to byte 4 i + j, columns `apart` bytes apart.
inline __m512i interleaved(int begin, int apart) {
  alignas(64) uint8_t order[64];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 4; ++j) order[4 * i + j] = static_cast<uint8_t>(apart * j + begin + i);
  return _mm512_load_si512(order);
}

template <class V>
struct Whole;

template <>
struct Whole<Narrow> {
  using Sum = __m256i;
  using Operand = __m256i;
  static Sum set(int32_t x) { return _mm256_set1_epi32(x); }
  template <int kVectors, bool kIndexed>
  static void operands(const Number* x, const uint16_t* columns, int k, int width, int lane,
                       Operand* out) {
    static_assert(kVectors == 1, "of tiles of 8 frames");
    if (kIndexed) {
      const uint16_t* c = columns + k;
      const Number* from = x + lane;
      const long w = width;
      out[0] = four_by_eight(from + c[0] * w, from + c[1] * w, from + c[2] * w, from + c[3] * w);
    } else {
      out[0] = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(x + static_cast<long>(k) * width + 4 * lane));
    }
  }
  static __m256i weights(const Weight* w) {
    int32_t four;
    __builtin_memcpy(&four, w, sizeof(four));
    return _mm256_set1_epi32(four);
  }
  static Sum dot(Sum sum, Operand x, __m256i w) { return _mm256_dpbusd_epi32(sum, x, w); }
  static Narrow to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum)}; }
};

template <>
struct Whole<Wide> {
  using Sum = __m512i;
  using Operand = __m512i;
  static Sum set(int32_t x) { return _mm512_set1_epi32(x); }
  template <int kVectors, bool kIndexed>
  static void operands(const Number* x, const uint16_t* columns, int k, int width, int lane,
                       Operand* out) {
    if (!kIndexed) {
      for (int v = 0; v < kVectors; ++v)
        out[v] = _mm512_loadu_si512(x + static_cast<long>(k) * width + 4 * (lane + 16 * v));
      return;
    }
    const uint16_t* c = columns + k;
    const Number* from = x + lane;
    const long w = width;
    if (kVectors == 1) {
      __m512i all = _mm512_castsi128_si512(load16(from + c[0] * w));
      all = _mm512_inserti32x4(all, load16(from + c[1] * w), 1);
      all = _mm512_inserti32x4(all, load16(from + c[2] * w), 2);
      all = _mm512_inserti32x4(all, load16(from + c[3] * w), 3);
      out[0] = _mm512_permutexvar_epi8(interleaved(0, 16), all);
    } else {
      const __m512i ab = _mm512_inserti64x4(_mm512_castsi256_si512(load32(from + c[0] * w)),
                                            load32(from + c[1] * w), 1);
      const __m512i cd = _mm512_inserti64x4(_mm512_castsi256_si512(load32(from + c[2] * w)),
                                            load32(from + c[3] * w), 1);
      for (int v = 0; v < kVectors; ++v)
        out[v] = _mm512_permutex2var_epi8(ab, interleaved(16 * v, 32), cd);
    }
  }
  static __m512i weights(const Weight* w) {
    int32_t four;
    __builtin_memcpy(&four, w, sizeof(four));
    return _mm512_set1_epi32(four);
  }
  static Sum dot(Sum sum, Operand x, __m512i w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static Wide to_float(Sum sum) { return {_mm512_cvtepi32_ps(sum)}; }
};

}  // namespace

#include "body.h"

const KernelTable* avx512vnni_table() { return &kTable; }

}  // namespace omnisparse

END_TARGET

#else
namespace omnisparse {
const KernelTable* avx512vnni_table() { return nullptr; }
}  // namespace omnisparse
#endif
