// Searches and sums over the logits of a vocabulary: what sampling needs. Where NaN is not mentioned there is none.
#pragma once

#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

constexpr int64_t kLogitsAtOnce = 64;

// x[0 .. kLogitsAtOnce), or a copy of its first n in `room`, filled up with -inf: neither largest nor of any weight.
DEEPMNN_INLINE const float* pad_logits(const float* x, int64_t n, float* room) {
  if (n >= kLogitsAtOnce) return x;
  for (int64_t i = 0; i < kLogitsAtOnce; ++i) room[i] = i < n ? x[i] : -__builtin_inff();
  return room;
}

// Looks for the largest in runs and remembers its run, so that only that one is searched for its place.
inline int64_t argmax_kernel(const float* x, int64_t n) {
  constexpr int64_t kRun = 16 * kLogitsAtOnce;
  const I32x16 no_sign = splat_i32(0x7fffffff);
  I32x16 magnitude = splat_i32(0);
  float best = -__builtin_inff(), room[kLogitsAtOnce];
  int64_t at = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    F32x16 top = splat(-__builtin_inff());
    for (int64_t i = begin; i < n && i < begin + kRun; i += kLogitsAtOnce) {
      const float* p = pad_logits(x + i, n - i, room);
      const F32x16 a = load(p), b = load(p + 16), c = load(p + 32), d = load(p + 48);
      top = max(max(max(a, b), max(c, d)), top);
      const I32x16 ab = max(bits(a) & no_sign, bits(b) & no_sign), cd = max(bits(c) & no_sign, bits(d) & no_sign);
      magnitude = max(magnitude, max(ab, cd));
    }
    const float largest = max_lane(top);
    if (largest > best) {
      best = largest;
      at = begin;
    }
  }
  if (n <= 0 || max_lane(magnitude) > 0x7f800000) return -1;  // above infinity's bits: NaN
  while (x[at] != best) ++at;
  return at;
}

inline int64_t find_above_kernel(const float* x, int64_t begin, int64_t n, float low) {
  int64_t i = begin;
  for (; i + kLogitsAtOnce <= n; i += kLogitsAtOnce) {
    const float* p = x + i;
    if (max_lane(max(max(load(p), load(p + 16)), max(load(p + 32), load(p + 48)))) > low) break;
  }
  while (i < n && !(x[i] > low)) ++i;
  return i;
}

inline float exp_sum_kernel(const float* x, int64_t n, float shift, float factor) {
  const F32x16 s = splat(shift), f = splat(factor);
  F32x16 total = splat(0.0f);
  float room[kLogitsAtOnce];
  for (int64_t i = 0; i < n; i += kLogitsAtOnce) {
    const float* p = pad_logits(x + i, n - i, room);
    const F32x16 ab = exp((load(p) - s) * f) + exp((load(p + 16) - s) * f);
    const F32x16 cd = exp((load(p + 32) - s) * f) + exp((load(p + 48) - s) * f);
    total = total + (ab + cd);
  }
  return sum(total);
}

}  // namespace deepmnn::DEEPMNN_NS
