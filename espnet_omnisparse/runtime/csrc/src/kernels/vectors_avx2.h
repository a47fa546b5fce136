// Vectors of 8 floats of AVX2 with FMA. The including file says for which instruction sets
// it is compiled, and defines Number, kGroup and kOffset.

struct Narrow {
  static constexpr int kLanes = 8;
  using Bits = __m256i;
  __m256 v;

  static Narrow set(float x) { return {_mm256_set1_ps(x)}; }
  static Narrow load(const float* x) { return {_mm256_loadu_ps(x)}; }
  static Narrow load_eights(const float* const* x, long at) { return load(x[0] + at); }
  static void store(float* x, Narrow a) { _mm256_storeu_ps(x, a.v); }
  static void store_eights(float* const* x, long at, Narrow a) { store(x[0] + at, a); }
  static Narrow fma(Narrow a, Narrow b, Narrow c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Narrow max(Narrow a, Narrow b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Narrow min(Narrow a, Narrow b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Narrow abs(Narrow a) {
    return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)))};
  }
  static Narrow sqrt(Narrow a) { return {_mm256_sqrt_ps(a.v)}; }
  static Narrow round(Narrow a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // of a finite a; one step of Newton's on the approximation
  static Narrow reciprocal(Narrow a) {
    const Narrow r = {_mm256_rcp_ps(a.v)};
    return r * (set(2.0f) - a * r);
  }
  static Narrow nan() { return {_mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000))}; }
  static Narrow select_below(Narrow a, Narrow limit, Narrow yes, Narrow no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, limit.v, _CMP_LT_OQ))};
  }
  static Narrow select_finite(Narrow a, Narrow yes, Narrow no) {
    const __m256 zero = _mm256_sub_ps(a.v, a.v);  // NaN unless finite
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(zero, zero, _CMP_ORD_Q))};
  }
  static Narrow scale_by_power(Narrow a, Narrow n) {
    const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(whole, 23)))};
  }
  static Narrow split(Narrow x, Narrow& exponent) {
    const __m256i bits = _mm256_castps_si256(x.v);
    __m256i e = _mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(126));
    const __m256i fraction = _mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff));
    const __m256 m =
        _mm256_castsi256_ps(_mm256_or_si256(fraction, _mm256_set1_epi32(0x3f000000)));
    const __m256 low = _mm256_cmp_ps(m, _mm256_set1_ps(0.70710678f), _CMP_LT_OQ);
    e = _mm256_add_epi32(e, _mm256_castps_si256(low));  // a true lane is -1
    exponent.v = _mm256_cvtepi32_ps(e);
    return {_mm256_add_ps(m, _mm256_and_ps(low, m))};
  }

  static Bits zero_bits() { return _mm256_setzero_si256(); }
  static Bits abs_bits(Narrow a) { return _mm256_castps_si256(abs(a).v); }
  static Bits max_bits(Bits a, Bits b) { return _mm256_max_epi32(a, b); }
  static Bits or_bits(Bits a, Bits b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static Bits shift_left(Bits a) {
    return _mm256_slli_epi32(a, kBits);
  }
  static Narrow from_bits(Bits a) { return {_mm256_castsi256_ps(a)}; }
  static void store_bits(void* x, Bits a) {
    _mm256_storeu_si256(static_cast<__m256i*>(x), a);
  }
  // a * scale, rounded, and 128 more if numbers have an offset, in the low bits of each lane:
  // of 1.5 * 2^23 and what is near it the last bits are whole numbers
  static Bits number(Narrow a, Narrow scale) {
    const Narrow magic = set(12582912.0f + (kOffset ? 128.0f : 0.0f));
    return _mm256_castps_si256(fma(a, scale, magic).v);
  }
  static Bits low(Bits a) {
    constexpr int kMask = sizeof(Number) == 1 ? 0xff : 0xffff;
    return _mm256_and_si256(a, _mm256_set1_epi32(kMask));
  }
  static void store_numbers(Number* x, Bits whole) {
    const Bits a = low(whole);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(a),
                                           _mm256_extracti128_si256(a, 1));
    if (sizeof(Number) == 2)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(x), words);
    else
      _mm_storel_epi64(reinterpret_cast<__m128i*>(x), _mm_packus_epi16(words, words));
  }

  // members and no friends: GCC forgets the target of friends
  Narrow operator+(Narrow b) const { return {_mm256_add_ps(v, b.v)}; }
  Narrow operator-(Narrow b) const { return {_mm256_sub_ps(v, b.v)}; }
  Narrow operator*(Narrow b) const { return {_mm256_mul_ps(v, b.v)}; }
  Narrow operator/(Narrow b) const { return {_mm256_div_ps(v, b.v)}; }
};

inline void transpose8(const float* x, long stride_x, float* y, long stride_y) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(x + i * stride_x);
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(y + i * stride_y, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(y + (i + 4) * stride_y, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
