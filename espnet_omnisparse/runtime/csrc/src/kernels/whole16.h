// Products of quantised numbers by pairs of 16 bits, exact where 8 bits would saturate.

template <class V>
struct Whole {
  using Sum = __m256i;
  using Operand = __m256i;
  static Sum set(int32_t x) { return _mm256_set1_epi32(x); }
  template <int kVectors, bool kIndexed>
  static void operands(const Number* x, const uint16_t* columns, int k, int width, int lane,
                       Operand* out) {
    for (int v = 0; v < kVectors; ++v) {
      const long n = lane + 8 * v;
      if (!kIndexed) {
        out[v] = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(x + static_cast<long>(k) * width + 2 * n));
        continue;
      }
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(
          x + static_cast<long>(columns[k]) * width + n));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(
          x + static_cast<long>(columns[k + 1]) * width + n));
      out[v] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(a, b)),
                                       _mm_unpackhi_epi16(a, b), 1);
    }
  }
  static __m256i weights(const Weight* w) {
    int32_t pair;
    __builtin_memcpy(&pair, w, sizeof(pair));
    return _mm256_set1_epi32(pair);
  }
  static Sum dot(Sum sum, Operand x, __m256i w) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
  }
  static Narrow to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum)}; }
};
