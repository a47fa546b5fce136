// Vectors of 8 floats, two of NEON's together.

struct Narrow {
  static constexpr int kLanes = 8;
  struct Bits {
    int32x4_t first, second;
  };
  float32x4_t first, second;

  static Narrow set(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
  static Narrow load(const float* x) { return {vld1q_f32(x), vld1q_f32(x + 4)}; }
  static Narrow load_eights(const float* const* x, long at) { return load(x[0] + at); }
  static void store(float* x, Narrow a) {
    vst1q_f32(x, a.first);
    vst1q_f32(x + 4, a.second);
  }
  static void store_eights(float* const* x, long at, Narrow a) { store(x[0] + at, a); }
  static Narrow fma(Narrow a, Narrow b, Narrow c) {
    return {vfmaq_f32(c.first, a.first, b.first), vfmaq_f32(c.second, a.second, b.second)};
  }
  // as of x86: the second if one of both is NaN
  static Narrow max(Narrow a, Narrow b) { return select(greater(a, b), a, b); }
  static Narrow min(Narrow a, Narrow b) { return select(greater(b, a), a, b); }
  static Narrow reciprocal(Narrow a) { return set(1.0f) / a; }
  static Narrow abs(Narrow a) { return {vabsq_f32(a.first), vabsq_f32(a.second)}; }
  static Narrow sqrt(Narrow a) { return {vsqrtq_f32(a.first), vsqrtq_f32(a.second)}; }
  static Narrow round(Narrow a) { return {vrndnq_f32(a.first), vrndnq_f32(a.second)}; }
  static Narrow nan() {
    return {vreinterpretq_f32_s32(vdupq_n_s32(0x7fc00000)),
            vreinterpretq_f32_s32(vdupq_n_s32(0x7fc00000))};
  }
  static Narrow select_below(Narrow a, Narrow limit, Narrow yes, Narrow no) {
    return select(greater(limit, a), yes, no);
  }
  static Narrow select_finite(Narrow a, Narrow yes, Narrow no) {
    const Narrow zero = a - a;  // NaN unless finite
    return select({vceqq_f32(zero.first, zero.first), vceqq_f32(zero.second, zero.second)}, yes, no);
  }
  // a 2^n, n whole
  static Narrow scale_by_power(Narrow a, Narrow n) {
    const int32x4_t bias = vdupq_n_s32(127);
    const Bits power{vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.first), bias), 23),
                     vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.second), bias), 23)};
    return a * from_bits(power);
  }
  static Narrow split(Narrow x, Narrow& exponent) {
    return {split_half(x.first, exponent.first), split_half(x.second, exponent.second)};
  }

  static Bits zero_bits() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Bits abs_bits(Narrow a) {
    const Narrow b = abs(a);
    return {vreinterpretq_s32_f32(b.first), vreinterpretq_s32_f32(b.second)};
  }
  static Bits max_bits(Bits a, Bits b) {
    return {vmaxq_s32(a.first, b.first), vmaxq_s32(a.second, b.second)};
  }
  static Bits or_bits(Bits a, Bits b) {
    return {vorrq_s32(a.first, b.first), vorrq_s32(a.second, b.second)};
  }
  template <int kBits>
  static Bits shift_left(Bits a) {
    return {vshlq_n_s32(a.first, kBits), vshlq_n_s32(a.second, kBits)};
  }
  static Narrow from_bits(Bits a) {
    return {vreinterpretq_f32_s32(a.first), vreinterpretq_f32_s32(a.second)};
  }
  static void store_bits(Number* x, Bits a) {
    vst1q_s16(x, vreinterpretq_s16_s32(a.first));
    vst1q_s16(x + 8, vreinterpretq_s16_s32(a.second));
  }
  // a * scale, rounded, in the low bits of each lane
  static Bits number(Narrow a, Narrow scale) {
    const Narrow x = a * scale;
    return {vcvtnq_s32_f32(x.first), vcvtnq_s32_f32(x.second)};
  }
  static Bits low(Bits a) {
    const int32x4_t mask = vdupq_n_s32(0xffff);
    return {vandq_s32(a.first, mask), vandq_s32(a.second, mask)};
  }
  static void store_numbers(Number* x, Bits a) {
    vst1q_s16(x, vcombine_s16(vmovn_s32(a.first), vmovn_s32(a.second)));
  }

  Narrow operator+(Narrow b) const {
    return {vaddq_f32(first, b.first), vaddq_f32(second, b.second)};
  }
  Narrow operator-(Narrow b) const {
    return {vsubq_f32(first, b.first), vsubq_f32(second, b.second)};
  }
  Narrow operator*(Narrow b) const {
    return {vmulq_f32(first, b.first), vmulq_f32(second, b.second)};
  }
  Narrow operator/(Narrow b) const {
    return {vdivq_f32(first, b.first), vdivq_f32(second, b.second)};
  }

 private:
  struct Mask {
    uint32x4_t first, second;
  };
  static Mask greater(Narrow a, Narrow b) {
    return {vcgtq_f32(a.first, b.first), vcgtq_f32(a.second, b.second)};
  }
  static Narrow select(Mask mask, Narrow yes, Narrow no) {
    return {vbslq_f32(mask.first, yes.first, no.first), vbslq_f32(mask.second, yes.second, no.second)};
  }
  static float32x4_t split_half(float32x4_t x, float32x4_t& exponent) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    int32x4_t e = vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32(bits, 23)), vdupq_n_s32(126));
    const uint32x4_t fraction = vandq_u32(bits, vdupq_n_u32(0x007fffff));
    const float32x4_t m =
        vreinterpretq_f32_u32(vorrq_u32(fraction, vdupq_n_u32(0x3f000000)));
    const uint32x4_t small = vcltq_f32(m, vdupq_n_f32(0.70710678f));
    e = vaddq_s32(e, vreinterpretq_s32_u32(small));  // a true lane is -1
    exponent = vcvtq_f32_s32(e);
    return vbslq_f32(small, vaddq_f32(m, m), m);
  }
};
