// exp on 16 lanes, and what follows from it.
#pragma once

namespace deepmnn::DEEPMNN_NS {

// e^(x - n ln 2) for the integer n next to x / ln 2: a polynomial.
DEEPMNN_INLINE F32x16 exp_rest(F32x16 x, F32x16 n) {
  F32x16 r = fma(n, splat(-0.693359375f), x);  // ln 2 in two parts; the product with the first is exact
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  return fma(p, r * r, r) + splat(1.0f);
}

// e^x, about 1e-7 relative (Cephes expf: x = n ln 2 + r, a polynomial in r). -inf gives 0, NaN stays NaN.
DEEPMNN_INLINE F32x16 exp(F32x16 x) {
  const F32x16 magic = splat(12582912.0f);        // 1.5 * 2^23: adding it rounds to an integer
  x = min(splat(89.0f), max(splat(-104.0f), x));  // beyond: infinity and 0 in float32; this order keeps NaN
  const F32x16 shifted = x * splat(1.44269504f) + magic;
  const F32x16 n = shifted - magic;
  const F32x16 p = exp_rest(x, n);
  // Times 2^n in two factors, so that n = 128 and subnormal results work.
  const I32x16 exponent = bits(shifted) - bits(magic), bias = splat_i32(127);
  const I32x16 half = shift_right(exponent + splat_i32(512), 1) - splat_i32(256);
  return p * from_bits(shift_left(half + bias, 23)) * from_bits(shift_left(exponent - half + bias, 23));
}

// e^x for -86 <= x <= 88, about 2e-7 relative. NaN stays NaN.
DEEPMNN_INLINE F32x16 exp_inside(F32x16 x) {
  const F32x16 magic = splat(12582912.0f);
  const F32x16 shifted = fma(x, splat(1.44269504f), magic);
  const F32x16 p = exp_rest(x, shifted - magic);
  // The magic number leaves n in the low bits; shifted into the exponent it is the factor 2^n.
  return from_bits(bits(p) + shift_left(bits(shifted), 23));
}

// e^x for x <= 0; below -86 (4e-38) it is 0.
DEEPMNN_INLINE F32x16 exp_below(F32x16 x) {
  const F32x16 lowest = splat(-86.0f);
  return select_less(x, lowest, splat(0.0f), exp_inside(max(lowest, x)));
}

DEEPMNN_INLINE F32x16 sigmoid(F32x16 x) { return splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - x)); }

// Below -88 it is that number's, -5e-37.
DEEPMNN_INLINE F32x16 silu(F32x16 x) {
  const F32x16 in = max(splat(-88.0f), x);  // this order keeps NaN
  return in / (splat(1.0f) + exp_inside(max(splat(-86.0f), splat(0.0f) - in)));
}

// The 16 high halves, rounded to nearest even; NaN stays NaN.
DEEPMNN_INLINE I32x16 round_bf16(F32x16 x) {
  const I32x16 u = bits(x);
  const I32x16 odd = shift_right(u, 16) & splat_i32(1);
  const I32x16 rounded = shift_right(u + odd + splat_i32(0x7fff), 16);
  const I32x16 nan = (shift_right(u, 16) & splat_i32(0xffbf)) + splat_i32(0x40);
  return select_greater(u & splat_i32(0x7fffffff), splat_i32(0x7f800000), nan, rounded);
}

}  // namespace deepmnn::DEEPMNN_NS
