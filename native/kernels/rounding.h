// Numbers to codes, rotated and rounded to nearest: quant/rounding.py is the numpy twin, and says what is computed. To
// the byte.
#pragma once

#include "kernels/columns.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

// Divisors of a panel's signed maximum that are tried as scales, in this order; the first best is kept: these times the
// format's offset. A negative one puts the largest magnitude at the longer, negative end of the codes.
constexpr float kDivisors[] = {-1.0f, -1.0625f, -1.125f, -1.1875f, -1.25f, -1.375f, 0.875f, -0.9375f};
constexpr int kNarrowBits = 6;  // codes of more bits try two: both ends of their range

DEEPMNN_INLINE F32x16 magnitude(F32x16 x) { return from_bits(bits(x) & splat_i32(0x7fffffff)); }

// The element of largest magnitude of each row, sign kept; the first one on ties.
DEEPMNN_INLINE F32x16 signed_max(const Columns& columns, int64_t n) {
  F32x16 best = load(columns.v[0]);
  for (int64_t k = 1; k < n; ++k) {
    const F32x16 x = load(columns.v[k]);
    best = select_less(magnitude(best), magnitude(x), x, best);
  }
  return best;
}

// Codes of w in 16 rows for a scale each.
struct Rounding {
  F32x16 scale, inverse, low, high;
  DEEPMNN_INLINE I32x16 of(F32x16 w) const { return to_int(min(high, max(low, w * inverse))); }
};

DEEPMNN_INLINE Rounding rounding_for(F32x16 scale, float offset) {
  const F32x16 zero = splat(0.0f), one = splat(1.0f);
  const F32x16 safe = select_less(zero, magnitude(scale), scale, one);
  const F32x16 inverse = select_less(zero, magnitude(scale), one / safe, zero);
  return {scale, inverse, splat(-offset), splat(offset - 1.0f)};
}

DEEPMNN_INLINE F32x16 squared_error(const Columns& columns, int64_t n, const Rounding& rounding) {
  F32x16 error = splat(0.0f);
  for (int64_t k = 0; k < n; ++k) {
    const F32x16 x = load(columns.v[k]), difference = x - to_float(rounding.of(x)) * rounding.scale;
    error = error + difference * difference;
  }
  return error;
}

DEEPMNN_INLINE F32x16 round_f16(F32x16 x) {
  uint16_t half[16];
  store_f16(half, x);
  return load_f16(half);
}

// The scale of each row with the least squared error.
DEEPMNN_INLINE F32x16 best_scale(const Columns& columns, int64_t n, const FormatInfo& format) {
  const F32x16 top = signed_max(columns, n), limit = splat(65504.0f), zero = splat(0.0f);
  const float offset = static_cast<float>(format.offset);
  F32x16 best = zero, best_error = zero;
  const auto attempt = [&](float divisor, bool first) {
    const F32x16 scale = round_f16(min(limit, max(zero - limit, top / splat(divisor))));
    const F32x16 error = squared_error(columns, n, rounding_for(scale, offset));
    best = first ? scale : select_less(error, best_error, scale, best);
    best_error = first ? error : select_less(error, best_error, error, best_error);
  };
  if (format.bits > kNarrowBits) {
    attempt(-offset, true);
    attempt(offset - 1.0f, false);
  } else {
    for (const float divisor : kDivisors) attempt(divisor * offset, divisor == kDivisors[0]);
  }
  return best;
}

inline void round_panel_kernel(const float* w, const Weight& shape, int64_t row, int64_t col, PanelCodes& out) {
  const FormatInfo& format = info_of(shape.format);
  Columns columns;
  const int64_t cols = padded_panel(shape, col);
  gather_columns(w, shape, row, col, cols, columns);
  rotate_columns(columns, cols);
  const F32x16 scale = best_scale(columns, cols, format);
  const Rounding rounding = rounding_for(scale, static_cast<float>(format.offset));
  for (int64_t k = 0; k < cols; ++k) {
    int8_t lanes[kBlockRows];
    store_i8(lanes, rounding.of(load(columns.v[k])));
    for (int r = 0; r < kBlockRows; ++r) out.codes[r][k] = lanes[r];
  }
  store_f16(out.scales, scale);
  for (int64_t r = shape.rows - row; r < kBlockRows; ++r) out.scales[r] = 0;  // not -0, as a row of zeros may have
}

}  // namespace deepmnn::DEEPMNN_NS
