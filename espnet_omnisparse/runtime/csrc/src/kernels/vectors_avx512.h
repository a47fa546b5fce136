// Vectors of 16 floats of AVX-512.

struct Wide {
  static constexpr int kLanes = 16;
  using Bits = __m512i;
  __m512 v;

  static Wide set(float x) { return {_mm512_set1_ps(x)}; }
  static Wide load(const float* x) { return {_mm512_loadu_ps(x)}; }
  static Wide load_eights(const float* const* x, long at) {
    return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(x[0] + at)),
                               _mm256_loadu_ps(x[1] + at), 1)};
  }
  static void store(float* x, Wide a) { _mm512_storeu_ps(x, a.v); }
  static void store_eights(float* const* x, long at, Wide a) {
    _mm256_storeu_ps(x[0] + at, _mm512_castps512_ps256(a.v));
    _mm256_storeu_ps(x[1] + at, _mm512_extractf32x8_ps(a.v, 1));
  }
  static Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Wide max(Wide a, Wide b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Wide min(Wide a, Wide b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Wide abs(Wide a) { return {_mm512_abs_ps(a.v)}; }
  static Wide sqrt(Wide a) { return {_mm512_sqrt_ps(a.v)}; }
  static Wide round(Wide a) { return {_mm512_roundscale_ps(a.v, 0)}; }
  // of a finite a; one step of Newton's on the approximation
  static Wide reciprocal(Wide a) {
    const Wide r = {_mm512_rcp14_ps(a.v)};
    return r * (set(2.0f) - a * r);
  }
  static Wide nan() { return {_mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000))}; }
  static Wide select_below(Wide a, Wide limit, Wide yes, Wide no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, limit.v, _CMP_LT_OQ), no.v, yes.v)};
  }
  static Wide select_finite(Wide a, Wide yes, Wide no) {
    const __m512 zero = _mm512_sub_ps(a.v, a.v);  // NaN unless finite
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(zero, zero, _CMP_ORD_Q), no.v, yes.v)};
  }
  static Wide scale_by_power(Wide a, Wide n) { return {_mm512_scalef_ps(a.v, n.v)}; }

  static Bits zero_bits() { return _mm512_setzero_si512(); }
  static Bits abs_bits(Wide a) { return _mm512_castps_si512(abs(a).v); }
  static Bits max_bits(Bits a, Bits b) { return _mm512_max_epi32(a, b); }
  static Bits or_bits(Bits a, Bits b) { return _mm512_or_si512(a, b); }
  template <int kBits>
  static Bits shift_left(Bits a) {
    return _mm512_slli_epi32(a, kBits);
  }
  static Wide from_bits(Bits a) { return {_mm512_castsi512_ps(a)}; }
  static void store_bits(void* x, Bits a) { _mm512_storeu_si512(x, a); }
  // a * scale, rounded, and 128 more if numbers have an offset, in the low bits of each lane:
  // of 1.5 * 2^23 and what is near it the last bits are whole numbers
  static Bits number(Wide a, Wide scale) {
    const Wide magic = set(12582912.0f + (kOffset ? 128.0f : 0.0f));
    return _mm512_castps_si512(fma(a, scale, magic).v);
  }
  static Bits low(Bits a) {
    constexpr int kMask = sizeof(Number) == 1 ? 0xff : 0xffff;
    return _mm512_and_si512(a, _mm512_set1_epi32(kMask));
  }
  static void store_numbers(Number* x, Bits a) {
    if (sizeof(Number) == 2)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(a));
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(a));
  }

  // members and no friends: GCC forgets the target of friends
  Wide operator+(Wide b) const { return {_mm512_add_ps(v, b.v)}; }
  Wide operator-(Wide b) const { return {_mm512_sub_ps(v, b.v)}; }
  Wide operator*(Wide b) const { return {_mm512_mul_ps(v, b.v)}; }
  Wide operator/(Wide b) const { return {_mm512_div_ps(v, b.v)}; }
};
