// Kernels on plain float vectors. In place is fine: y may be an input.
#pragma once

#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// y[i] = f(x[i]) and y[i] = f(a[i], b[i]), 16 at a time.
template <class F>
DEEPMNN_INLINE void map(const float* x, int64_t n, float* y, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, f(load(x + i)));
  if (i < n) store(y + i, f(load(x + i, n - i)), n - i);
}
template <class F>
DEEPMNN_INLINE void map(const float* a, const float* b, int64_t n, float* y, F f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, f(load(a + i), load(b + i)));
  if (i < n) store(y + i, f(load(a + i, n - i), load(b + i, n - i)), n - i);
}

inline void add_kernel(const float* a, const float* b, int64_t n, float* y) {
  map(a, b, n, y, [](F32x16 p, F32x16 q) { return p + q; });
}
inline void mul_kernel(const float* a, const float* b, int64_t n, float* y) {
  map(a, b, n, y, [](F32x16 p, F32x16 q) { return p * q; });
}
inline void axpy_kernel(float a, const float* x, int64_t n, float* y) {
  const F32x16 factor = splat(a);
  map(x, y, n, y, [=](F32x16 p, F32x16 q) { return fma(factor, p, q); });
}
inline void scale_kernel(const float* x, float factor, int64_t n, float* y) {
  const F32x16 f = splat(factor);
  map(x, n, y, [=](F32x16 p) { return p * f; });
}
inline void silu_kernel(const float* x, int64_t n, float* y) {
  map(x, n, y, [](F32x16 p) { return silu(p); });
}
inline void sigmoid_kernel(const float* x, int64_t n, float* y) {
  map(x, n, y, [](F32x16 p) { return sigmoid(p); });
}

inline void to_bf16_kernel(const float* x, int64_t n, uint16_t* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_u16(y + i, round_bf16(load(x + i)));
  if (i == n) return;
  uint16_t tail[16];
  store_u16(tail, round_bf16(load(x + i, n - i)));
  __builtin_memcpy(y + i, tail, static_cast<uint64_t>(n - i) * sizeof(uint16_t));
}

// Rotates one head of 2 * half floats: (first, second) of every pair by the angle whose cos and sin are given.
inline void rope_kernel(float* x, const float* cos, const float* sin, int64_t half, bool interleaved) {
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const F32x16 c = load(cos + i), s = load(sin + i);
    float *low = interleaved ? x + 2 * i : x + i, *high = interleaved ? low + 16 : x + half + i;
    F32x16 first = load(low), second = load(high);
    if (interleaved) deinterleave(first, second, first, second);
    F32x16 a = first * c - second * s, b = first * s + second * c;
    if (interleaved) interleave(a, b, a, b);
    store(low, a);
    store(high, b);
  }
  for (; i < half; ++i) {
    float *low = interleaved ? x + 2 * i : x + i, *high = interleaved ? low + 1 : x + half + i;
    const float first = *low, second = *high;
    *low = first * cos[i] - second * sin[i];
    *high = first * sin[i] + second * cos[i];
  }
}

}  // namespace deepmnn::DEEPMNN_NS
