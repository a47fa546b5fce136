// Functions of vectors: exponential, logarithm, activations. Included by body.h, in its
// unnamed namespace.

template <class V>
inline V exponential(V x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial is that of Cephes' expf
  // NaN goes through: of a NaN, min and max return their second argument
  x = V::min(V::set(89.0f), x);  // whose power of two, 128, is infinity
  x = V::max(V::set(-87.3365447504019f), x);
  const V n = V::round(x * V::set(1.44269504088896341f));
  V r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  V p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, r * r, r + V::set(1.0f));
  return V::scale_by_power(p, n);
}

// log(x) of finite x > 0; NaN and infinity become NaN
template <class V>
inline V logarithm(V x) {
  V e;
  V m = V::split(x, e);  // x = m 2^e, m in [sqrt(1/2), sqrt(2))
  m = m - V::set(1.0f);
  V p = V::set(7.0376836292e-2f);
  p = V::fma(p, m, V::set(-1.1514610310e-1f));
  p = V::fma(p, m, V::set(1.1676998740e-1f));
  p = V::fma(p, m, V::set(-1.2420140846e-1f));
  p = V::fma(p, m, V::set(1.4249322787e-1f));
  p = V::fma(p, m, V::set(-1.6668057665e-1f));
  p = V::fma(p, m, V::set(2.0000714765e-1f));
  p = V::fma(p, m, V::set(-2.4999993993e-1f));
  p = V::fma(p, m, V::set(3.3333331174e-1f));
  const V z = m * m;
  V y = p * m * z;
  y = V::fma(e, V::set(-2.12194440e-4f), y);
  y = V::fma(z, V::set(-0.5f), y);
  return V::fma(e, V::set(0.693359375f), m + y) + (x - x);
}

// Of gates and swish, by the hundred thousand a second: a power of two, whose reduction is a
// product in two steps, and a reciprocal instead of a division.
template <class V>
inline V sigmoid(V x) {
  const V low = V::set(-87.0f);  // below it is 0, as far as floats go
  const V y = V::max(low, V::min(V::set(87.0f), x));
  const V n = V::round(y * V::set(-1.44269504f));
  const V f = V::fma(y, V::set(-1.92596303e-8f), V::fma(y, V::set(-1.44269502f), V::set(0.0f) - n));
  V p = V::set(1.33908633e-3f);
  p = V::fma(p, f, V::set(9.67603e-3f));
  p = V::fma(p, f, V::set(5.550357e-2f));
  p = V::fma(p, f, V::set(2.4022107e-1f));
  p = V::fma(p, f, V::set(6.9314719e-1f));
  p = V::fma(p, f, V::set(1.00000008f));
  const V open = V::reciprocal(V::scale_by_power(p, n) + V::set(1.0f));
  return V::select_below(x, low, V::set(0.0f), open);
}

template <class V>
inline V hyperbolic_tangent(V x) {
  // 2 sigmoid(2 x) - 1 loses digits near 0, where the odd polynomial has them
  const V one = V::set(1.0f);
  const V big = V::set(2.0f) / (one + exponential(V::set(0.0f) - (x + x))) - one;
  const V z = x * x;
  V p = V::set(-5.70498872745e-3f);
  p = V::fma(p, z, V::set(2.06390887954e-2f));
  p = V::fma(p, z, V::set(-5.37397155531e-2f));
  p = V::fma(p, z, V::set(1.33314422036e-1f));
  p = V::fma(p, z, V::set(-3.33332819422e-1f));
  const V small = V::fma(p * z, x, x);
  return V::select_below(V::abs(x), V::set(0.625f), small, big);
}

// x Phi(x), Phi by Abramowitz and Stegun 7.1.26 (error below 2e-7)
template <class V>
inline V gelu(V x) {
  const V s = x * V::set(0.70710678118654752f);
  const V a = V::abs(s);
  const V t = V::set(1.0f) / V::fma(V::set(0.3275911f), a, V::set(1.0f));
  V p = V::set(1.061405429f);
  p = V::fma(p, t, V::set(-1.453152027f));
  p = V::fma(p, t, V::set(1.421413741f));
  p = V::fma(p, t, V::set(-0.284496736f));
  p = V::fma(p, t, V::set(0.254829592f));
  const V tail = p * t * exponential(V::set(0.0f) - s * s);  // 1 - erf(|s|)
  const V upper = V::set(1.0f) - V::set(0.5f) * tail;
  return x * V::select_below(s, V::set(0.0f), V::set(0.5f) * tail, upper);
}

template <class V>
inline V selu(V x) {
  const V zero = V::set(0.0f);
  const V negative = exponential(V::min(zero, x)) - V::set(1.0f);  // NaN goes through
  const V scaled = V::set(1.6732632423543773f) * negative;
  return V::set(1.0507009873554805f) * (V::max(zero, x) + scaled);
}

template <class V>
inline V activated(V x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return V::max(V::set(0.0f), x);  // the second of max goes through if it is NaN
    case Activation::kSwish:
      return x * sigmoid(x);
    case Activation::kTanh:
      return hyperbolic_tangent(x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kHardTanh:
      return V::max(V::set(-1.0f), V::min(V::set(1.0f), x));
    case Activation::kSelu:
      return selu(x);
    default:
      return x;
  }
}
