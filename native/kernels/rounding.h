// Numbers to codes, rounded to nearest: quant/rounding.py is the numpy twin, and says what is computed. To the byte.
#pragma once

#include "kernels/columns.h"
#include "kernels/kernels.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// Divisors of a group's signed maximum that are tried as scales, in this order; the first best is kept. A negative one
// puts the largest magnitude at the longer, negative end of the codes.
constexpr float kDivisorsW4[] = {-8.0f, -8.5f, -9.0f, -9.5f, -10.0f, -11.0f, 7.0f, -7.5f};
constexpr float kDivisorsW8[] = {-128.0f, 127.0f};

template <Format kFormat>
constexpr float kOffset = static_cast<float>(kFormats[static_cast<int>(kFormat)].offset);

constexpr float kUnits = kMultiplierMax + 1.0f;  // of a multiplier in a scale

DEEPMNN_INLINE F32x16 magnitude(F32x16 x) { return from_bits(bits(x) & splat_i32(0x7fffffff)); }

// Of columns [begin, begin + n): the element of largest magnitude of each row, sign kept; the first one on ties.
DEEPMNN_INLINE F32x16 signed_max(const Columns& columns, int64_t begin, int64_t n) {
  F32x16 best = load(columns.v[begin]);
  for (int64_t k = begin + 1; k < begin + n; ++k) {
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

DEEPMNN_INLINE F32x16 squared_error(const Columns& columns, int64_t begin, int64_t n, const Rounding& rounding) {
  F32x16 error = splat(0.0f);
  for (int64_t k = begin; k < begin + n; ++k) {
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

// Of columns [begin, begin + n): the scale of each row with the least squared error.
template <bool kHalf>
DEEPMNN_INLINE F32x16 best_scale(const Columns& columns, int64_t begin, int64_t n, float offset, const float* divisors,
                                 int count) {
  const F32x16 top = signed_max(columns, begin, n), limit = splat(65504.0f), zero = splat(0.0f);
  F32x16 best = zero, best_error = zero;
  for (int c = 0; c < count; ++c) {
    const F32x16 wide = min(limit, max(zero - limit, top / splat(divisors[c])));
    const F32x16 scale = kHalf ? round_f16(wide) : wide;
    const F32x16 error = squared_error(columns, begin, n, rounding_for(scale, offset));
    best = c == 0 ? scale : select_less(error, best_error, scale, best);
    best_error = c == 0 ? error : select_less(error, best_error, error, best_error);
  }
  return best;
}

DEEPMNN_INLINE void store_codes(const Columns& columns, int64_t begin, int64_t n, const Rounding& rounding,
                                PanelCodes& out) {
  for (int64_t k = begin; k < begin + n; ++k) {
    int8_t lanes[kBlockRows];
    store_i8(lanes, rounding.of(load(columns.v[k])));
    for (int r = 0; r < kBlockRows; ++r) out.codes[r][k] = lanes[r];
  }
}

// A scale for the panel.
DEEPMNN_INLINE void round_w8(const Columns& columns, int64_t cols, PanelCodes& out) {
  const F32x16 scale = best_scale<true>(columns, 0, cols, kOffset<Format::w8>, kDivisorsW8, 2);
  store_codes(columns, 0, cols, rounding_for(scale, kOffset<Format::w8>), out);
  store_f16(out.scales, scale);
}

// The multiplier of a group: its own scale in units, rounded, or the number below or above, whichever has the least
// squared error.
DEEPMNN_INLINE F32x16 best_multiplier(const Columns& columns, int64_t begin, int64_t n, F32x16 own, F32x16 unit) {
  const F32x16 zero = splat(0.0f), limit = splat(kMultiplierMax);
  const auto clamp = [&](F32x16 x) { return min(limit, max(zero - limit, x)); };
  const F32x16 safe = select_less(zero, unit, unit, splat(1.0f));
  const F32x16 middle = to_float(to_int(clamp(select_less(zero, unit, own / safe, zero))));
  F32x16 best = zero, best_error = zero;
  for (int i = 0; i < 3; ++i) {
    const F32x16 multiplier = clamp(middle + splat(i == 0 ? 0.0f : i == 1 ? -1.0f : 1.0f));
    const F32x16 error = squared_error(columns, begin, n, rounding_for(multiplier * unit, kOffset<Format::w4>));
    best = i == 0 ? multiplier : select_less(error, best_error, multiplier, best);
    best_error = i == 0 ? error : select_less(error, best_error, error, best_error);
  }
  return best;
}

// A multiplier of the panel's scale for each group.
DEEPMNN_INLINE void round_w4(const Columns& columns, int64_t cols, int64_t group_size, PanelCodes& out) {
  F32x16 own[kPanelCols / kPartCols], largest = splat(0.0f);
  const int64_t groups = cols / group_size;
  for (int64_t g = 0; g < groups; ++g) {
    own[g] = best_scale<false>(columns, g * group_size, group_size, kOffset<Format::w4>, kDivisorsW4, 8);
    largest = max(largest, magnitude(own[g]));
  }
  const F32x16 scale = round_f16(min(splat(65504.0f), largest * splat(kUnits / kMultiplierMax)));
  const F32x16 unit = scale * splat(1 / kUnits);
  for (int64_t g = 0; g < groups; ++g) {
    const F32x16 multiplier = best_multiplier(columns, g * group_size, group_size, own[g], unit);
    int8_t lanes[kBlockRows];
    store_i8(lanes, to_int(multiplier));
    for (int r = 0; r < kBlockRows; ++r) out.multipliers[r][g] = lanes[r];
    store_codes(columns, g * group_size, group_size, rounding_for(multiplier * unit, kOffset<Format::w4>), out);
  }
  store_f16(out.scales, scale);
}

inline void round_panel_kernel(const float* w, const Weight& shape, int64_t row, int64_t col, PanelCodes& out) {
  Columns columns;
  const int64_t cols = padded_panel(shape, col);
  gather_columns(w, shape, row, col, cols, columns);
  if (shape.format == Format::w4) {
    round_w4(columns, cols, shape.group_size, out);
  } else {
    round_w8(columns, cols, out);
  }
  for (int64_t r = shape.rows - row; r < kBlockRows; ++r) out.scales[r] = 0;  // not -0, as a row of zeros may have
}

}  // namespace deepmnn::DEEPMNN_NS
