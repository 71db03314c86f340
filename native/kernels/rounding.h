// Numbers to codes, rotated and rounded to nearest: quant/rounding.py is the numpy twin, and says what is computed. To
// the byte.
#pragma once

#include "kernels/columns.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

// Divisors of a panel's signed maximum that are tried as scales, in this order; the first best is kept. With few levels
// it pays to clip the largest numbers. The least level is one: what codes stood for once rounds to the same again.
constexpr int kDivisors = 8;
struct Divisors {
  float v[kDivisors];
};
constexpr Divisors divisors_of(int bits) {
  switch (bits) {
    case 3:
      return {{-59.0f, -74.0f, -79.0f, -84.0f, -89.0f, -94.0f, 79.0f, 87.0f}};
    case 4:
      return {{-54.0f, -51.0f, -57.0f, -60.0f, -63.0f, -66.0f, 56.0f, 62.0f}};
    case 5:
      return {{-105.0f, -111.0f, -117.0f, -122.0f, -127.0f, 108.0f, 114.0f, 120.0f}};
    case 6:
      return {{-30.0f, -30.5f, -31.0f, -31.5f, -32.0f, -32.5f, -33.0f, -34.0f}};
    default:
      return {{-125.0f, -126.0f, -127.0f, -128.0f, -129.0f, -130.0f, 126.0f, 127.0f}};
  }
}

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

// Levels of a format, ascending, to find the nearest.
struct Steps {
  int count;        // of steps from one level to the next; 0: levels are all the integers from low to high
  float low, high;  // the first and the last level
  float middle[31], height[31];

  explicit Steps(const FormatInfo& format) : count(0) {
    const int codes = 1 << format.bits;
    int last = -129;
    for (int n = 0; n < codes; ++n) {  // the n-th smallest
      int next = 128;
      for (int code = 0; code < codes; ++code) {
        const int level = level_of(format, code);
        if (level > last && level < next) next = level;
      }
      if (n == 0) {
        low = static_cast<float>(next);
      } else if (has_table(format)) {
        middle[count] = static_cast<float>(last + next) / 2;
        height[count++] = static_cast<float>(next - last);
      }
      last = next;
    }
    high = static_cast<float>(last);
  }
};

// Levels of w in 16 rows for a scale each.
struct Rounding {
  const Steps& steps;
  F32x16 scale, inverse;
  DEEPMNN_INLINE F32x16 of(F32x16 w) const {
    const F32x16 x = w * inverse;
    if (steps.count == 0) return to_float(to_int(min(splat(steps.high), max(splat(steps.low), x))));
    F32x16 level = splat(steps.low);
    for (int i = 0; i < steps.count; ++i) {
      level = level + select_less(x, splat(steps.middle[i]), splat(0.0f), splat(steps.height[i]));
    }
    return level;
  }
};

DEEPMNN_INLINE Rounding rounding_for(F32x16 scale, const Steps& steps) {
  const F32x16 zero = splat(0.0f), one = splat(1.0f);
  const F32x16 safe = select_less(zero, magnitude(scale), scale, one);
  return {steps, scale, select_less(zero, magnitude(scale), one / safe, zero)};
}

DEEPMNN_INLINE F32x16 squared_error(const Columns& columns, int64_t n, const Rounding& rounding) {
  F32x16 error = splat(0.0f);
  for (int64_t k = 0; k < n; ++k) {
    const F32x16 x = load(columns.v[k]), difference = x - rounding.of(x) * rounding.scale;
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
DEEPMNN_INLINE F32x16 best_scale(const Columns& columns, int64_t n, int bits, const Steps& steps) {
  const F32x16 top = signed_max(columns, n), limit = splat(65504.0f), zero = splat(0.0f);
  const Divisors divisors = divisors_of(bits);
  F32x16 best = zero, best_error = zero;
  for (int i = 0; i < kDivisors; ++i) {
    const F32x16 scale = round_f16(min(limit, max(zero - limit, top / splat(divisors.v[i]))));
    const F32x16 error = squared_error(columns, n, rounding_for(scale, steps));
    best = i == 0 ? scale : select_less(error, best_error, scale, best);
    best_error = i == 0 ? error : select_less(error, best_error, error, best_error);
  }
  return best;
}

inline void round_panel_kernel(const float* w, const Weight& shape, int64_t row, int64_t col, PanelCodes& out) {
  const FormatInfo& format = info_of(shape.format);
  const Steps steps(format);
  Columns columns;
  const int64_t cols = padded_panel(shape, col);
  gather_columns(w, shape, row, col, cols, columns);
  rotate_columns(columns, cols);
  const F32x16 scale = best_scale(columns, cols, format.bits, steps);
  const Rounding rounding = rounding_for(scale, steps);
  for (int64_t k = 0; k < cols; ++k) {
    int8_t lanes[kBlockRows];
    store_i8(lanes, to_int(rounding.of(load(columns.v[k]))));
    for (int r = 0; r < kBlockRows; ++r) out.levels[r][k] = lanes[r];
  }
  store_f16(out.scales, scale);
  for (int64_t r = shape.rows - row; r < kBlockRows; ++r) out.scales[r] = 0;  // not -0, as a row of zeros may have
}

}  // namespace deepmnn::DEEPMNN_NS
