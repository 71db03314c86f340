// Kernels that reduce a row before they write it: RMSNorm and softmax.
#pragma once

#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// y = x / sqrt(mean(x^2) + eps) * w, given the sum of squares.
DEEPMNN_INLINE void normalize(const float* x, const float* w, float squares, float eps, int64_t d, float* y) {
  const F32x16 inverse = splat(1.0f / __builtin_sqrtf(squares / static_cast<float>(d) + eps));
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    const F32x16 v = load(x + i) * inverse;
    store(y + i, w ? v * load(w + i) : v);
  }
  if (i == d) return;
  const F32x16 v = load(x + i, d - i) * inverse;
  store(y + i, w ? v * load(w + i, d - i) : v, d - i);
}

inline void rms_norm_kernel(const float* x, const float* w, float eps, int64_t d, float* y) {
  F32x16 even = splat(0.0f), odd = splat(0.0f);
  int64_t i = 0;
  for (; i + 32 <= d; i += 32) {
    const F32x16 a = load(x + i), b = load(x + i + 16);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < d; i += 16) {
    const F32x16 a = load(x + i, d - i < 16 ? d - i : 16);
    even = fma(a, a, even);
  }
  normalize(x, w, sum(even + odd), eps, d, y);
}

inline void add_rms_norm_kernel(const float* a, const float* b, const float* w, float eps, int64_t d, float* total,
                                float* y) {
  F32x16 squares = splat(0.0f);
  for (int64_t i = 0; i < d; i += 16) {
    const int64_t n = d - i < 16 ? d - i : 16;
    const F32x16 s = load(a + i, n) + load(b + i, n);
    store(total + i, s, n);
    squares = fma(s, s, squares);
  }
  normalize(total, w, sum(squares), eps, d, y);
}

// y = (x - mean) / sqrt(variance + eps) * w + b, in two passes: the variance is that of numbers around their mean.
inline void layer_norm_kernel(const float* x, const float* w, const float* b, float eps, int64_t d, float* y) {
  F32x16 total = splat(0.0f), squares = splat(0.0f);
  int64_t i = 0;
  for (; i < d; i += 16) total = total + load(x + i, d - i < 16 ? d - i : 16);
  const F32x16 mean = splat(sum(total) / static_cast<float>(d));
  for (i = 0; i + 16 <= d; i += 16) {
    const F32x16 apart = load(x + i) - mean;
    squares = fma(apart, apart, squares);
  }
  float rest = 0.0f;
  if (i < d) {
    float apart[16];
    store(apart, load(x + i, d - i) - mean);
    for (int64_t j = 0; j < d - i; ++j) rest += apart[j] * apart[j];
  }
  const float variance = (sum(squares) + rest) / static_cast<float>(d);
  const F32x16 inverse = splat(1.0f / __builtin_sqrtf(variance + eps));
  for (i = 0; i < d; i += 16) {
    const int64_t n = d - i < 16 ? d - i : 16;
    store(y + i, fma((load(x + i, n) - mean) * inverse, load(w + i, n), load(b + i, n)), n);
  }
}

// y = exp(x - max x) / its sum. -inf gives 0 as long as one x is finite.
inline void softmax_kernel(const float* x, int64_t n, float* y) {
  const float lowest = -__builtin_inff();
  F32x16 top = splat(lowest);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) top = max(top, load(x + i));
  float largest = max_lane(top);
  for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  const F32x16 shift = splat(largest);
  F32x16 total = splat(0.0f);
  for (i = 0; i + 16 <= n; i += 16) {
    const F32x16 e = exp(load(x + i) - shift);
    store(y + i, e);
    total = total + e;
  }
  float tail = 0.0f;
  if (i < n) {
    store(y + i, exp(load(x + i, n - i) - shift), n - i);
    for (int64_t j = i; j < n; ++j) tail += y[j];
  }
  const F32x16 inverse = splat(1.0f / (sum(total) + tail));
  for (i = 0; i < n; i += 16) {
    const int64_t lanes = n - i < 16 ? n - i : 16;
    store(y + i, load(y + i, lanes) * inverse, lanes);
  }
}

}  // namespace deepmnn::DEEPMNN_NS
