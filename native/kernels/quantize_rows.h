// Rotates activations and quantises them to int8: one scale per row and panel, and the sum of its codes
// (docs/layouts.md, "Activations"). And rows of an int8 cache.
#pragma once

#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

// What numbers with this scale are multiplied by: 0 for a scale that is no normal number.
DEEPMNN_INLINE float inverse_of(float step) {
  return step >= 1.17549435e-38f && step <= 3.40282347e38f ? 1.0f / step : 0.0f;
}

// 16 codes, -127 .. 127 because of how the scale was chosen; x times 0 may be NaN, so nothing is multiplied by it.
DEEPMNN_INLINE I32x16 quantize_16(F32x16 x, float inverse) {
  return to_int(inverse == 0.0f ? splat(0.0f) : x * splat(inverse));
}

// The scale of n numbers. NaN or infinity becomes a scale whose codes are zeros, so that a product with it is NaN: the
// fault is not lost.
DEEPMNN_INLINE float scale_of(const float* x, int64_t n) {
  const I32x16 size = splat_i32(0x7fffffff);  // magnitudes compare like their bits
  I32x16 top = splat_i32(0);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) top = max(top, bits(load(x + i)) & size);
  if (i < n) top = max(top, bits(load(x + i, n - i)) & size);
  const int32_t largest_bits = max_lane(top);
  float largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof(largest));
  return largest / 127.0f;
}

// To nearest of the numbers with 8 bits, as in bfloat16. Two ways to compute a panel differ in the last bits of its
// numbers. They give the same scale so, and the same codes, unless one of them lies right at a boundary; and a panel
// that was rounded before is found again.
DEEPMNN_INLINE float rounded_scale(float scale) {
  uint32_t bits;
  __builtin_memcpy(&bits, &scale, sizeof(bits));
  if (bits < 0x7f800000) bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;  // else it is none, and stays so
  __builtin_memcpy(&scale, &bits, sizeof(bits));
  return scale;
}

// A panel, of which the first n (1 .. kPanelCols) columns exist. The largest code is 127 whichever way the scale was
// rounded.
DEEPMNN_INLINE void quantize_panel(const float* x, int64_t n, int8_t* codes, PanelHead& head) {
  const int64_t cols = (n + kPartCols - 1) / kPartCols * kPartCols;
  alignas(64) float rotated[kPanelCols];
  rotate_panel(x, n, rotated);
  head.scale = rounded_scale(scale_of(rotated, cols));
  const float inverse = inverse_of(head.scale);
  for (int64_t i = 0; i < cols; i += 16) store_i8(codes + i, quantize_16(load(rotated + i), inverse));
  __builtin_memset(codes + cols, 0, static_cast<uint64_t>(kPanelCols - cols));
  head.sum = sum_of_256(codes);
}

// The largest magnitude in each quad of 256 numbers, as its bits, which compare like magnitudes.
DEEPMNN_INLINE void quad_sizes(const float* x, int32_t* out) {
  const I32x16 size = splat_i32(0x7fffffff);
  const auto pairs = [&](const float* at) {
    F32x16 first, second;
    deinterleave(load(at), load(at + 16), first, second);
    return from_bits(max(bits(first) & size, bits(second) & size));
  };
  for (int i = 0; i < 4; ++i) {
    F32x16 first, second;
    deinterleave(pairs(x + 64 * i), pairs(x + 64 * i + 32), first, second);
    store(reinterpret_cast<float*>(out + 16 * i), from_bits(max(bits(first), bits(second))));
  }
}

// The sums of each 16 of 256 integers, 16 vectors of them.
DEEPMNN_INLINE I32x16 sums_of_16(const I32x16 (&v)[16]) {
  const auto add = [](I32x16 a, I32x16 b) {
    F32x16 first, second;
    deinterleave(from_bits(a), from_bits(b), first, second);
    return bits(first) + bits(second);
  };
  I32x16 eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = add(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 4; ++i) four[i] = add(eight[2 * i], eight[2 * i + 1]);
  return add(add(four[0], four[1]), add(four[2], four[3]));
}

// 16 sums, and after them those of every two of them, of every two of these, and so on.
DEEPMNN_INLINE void sum_pairs(float (&sums)[32]) {
  for (int i = 0; i < 15; ++i) sums[16 + i] = sums[2 * i] + sums[2 * i + 1];
  sums[31] = 0.0f;
}

// The scale of a plain panel: that of all but the quads with the largest numbers, as long as these fit 16 bits.
DEEPMNN_INLINE float plain_scale(const int32_t* sizes, int32_t& limit) {
  int32_t largest[kOutliers + 1] = {};  // in order
  for (int q = 0; q < kPanelCols / 4; ++q) {
    int32_t size = sizes[q];
    if (size <= largest[kOutliers]) continue;
    for (int i = 0; i <= kOutliers; ++i) {
      if (size <= largest[i]) continue;
      const int32_t smaller = largest[i];
      largest[i] = size;
      size = smaller;
    }
  }
  float top, rest;
  __builtin_memcpy(&top, &largest[0], sizeof(top));
  __builtin_memcpy(&rest, &largest[kOutliers], sizeof(rest));
  limit = largest[kOutliers];
  if (largest[0] >= 0x7f800000) return top;
  const float least = top / 16000.0f, scale = rest / 127.0f;
  return least > scale ? least : scale;
}

// A panel as it is, of which the first n (1 .. kPanelCols) columns exist.
inline void quantize_plain_panel(const float* x, int64_t n, int8_t* codes, PanelHead& head, PlainPanel& plain) {
  alignas(64) float padded[kPanelCols];
  __builtin_memcpy(padded, x, static_cast<uint64_t>(n) * sizeof(float));
  __builtin_memset(padded + n, 0, static_cast<uint64_t>(kPanelCols - n) * sizeof(float));
  alignas(64) int32_t sizes[kPanelCols / 4];
  quad_sizes(padded, sizes);
  int32_t limit = 0;
  head.scale = rounded_scale(plain_scale(sizes, limit));
  head.sum = 0;
  const float inverse = inverse_of(head.scale);
  I32x16 wide[16];
  for (int i = 0; i < 16; ++i) {
    wide[i] = quantize_16(load(padded + 16 * i), inverse);
    store_i8(codes + 16 * i, wide[i]);
  }
  store(plain.sums, to_float(sums_of_16(wide)));
  store(plain.code_sums, load(plain.sums));
  int found = 0;
  __builtin_memset(plain.quads, 0, sizeof(plain.quads));
  __builtin_memset(plain.outliers, 0, sizeof(plain.outliers));
  __builtin_memset(plain.outlier_sums, 0, sizeof(plain.outlier_sums));
  for (int q = 0; q < kPanelCols / 4 && found < kOutliers; ++q) {
    if (sizes[q] <= limit || inverse == 0.0f) continue;
    alignas(64) int32_t numbers[16];
    store(reinterpret_cast<float*>(numbers), from_bits(quantize_16(load(padded + 4 * q, 4), inverse)));
    for (int j = 0; j < 4; ++j) {
      const int32_t high = (numbers[j] + kOutlierStep / 2) >> 7;
      plain.outliers[found][j] = static_cast<int8_t>(high);
      plain.outlier_sums[found] += high;
      codes[4 * q + j] = static_cast<int8_t>(numbers[j] - kOutlierStep * high);
    }
    plain.code_sums[q / 4] -= static_cast<float>(kOutlierStep * plain.outlier_sums[found]);
    plain.quads[found++] = q;
  }
  sum_pairs(plain.sums);
  sum_pairs(plain.code_sums);
}

inline void quantize_rows_kernel(const float* x, int64_t stride, int64_t n, int64_t cols, const QuantizedRows& out) {
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t first = 0; first < cols; first += kPanelCols) {
      const QuantizedRows to = out.from(row).from_panel(first / kPanelCols);
      const int64_t left = cols - first < kPanelCols ? cols - first : kPanelCols;
      const float* from = x + row * stride + first;
      if (to.plain) {
        quantize_plain_panel(from, left, to.codes, *to.heads, *to.plain);
      } else {
        quantize_panel(from, left, to.codes, *to.heads);
      }
    }
  }
}

// What the quantised form of a row [cols] stands for.
inline void round_row_kernel(const float* x, int64_t cols, float* y) {
  for (int64_t first = 0; first < cols; first += kPanelCols) {
    const int64_t left = cols - first < kPanelCols ? cols - first : kPanelCols;
    const int64_t stored = (left + kPartCols - 1) / kPartCols * kPartCols;
    alignas(64) int8_t codes[kPanelCols];
    alignas(64) float values[kPanelCols];
    PanelHead head;
    quantize_panel(x + first, left, codes, head);
    for (int64_t i = 0; i < stored; i += 16) store(values + i, to_float(widen_i8(codes + i)) * splat(head.scale));
    unrotate_panel(values, stored);
    __builtin_memcpy(y + first, values, static_cast<uint64_t>(left) * sizeof(float));
  }
}

// A row of an int8 cache, its heads rotated already: a scale for every kCacheGroup columns.
inline void quantize_cache_kernel(const float* x, int64_t n, int8_t* codes, float* scales) {
  for (int64_t first = 0; first < n; first += kCacheGroup, ++scales) {
    const int64_t end = n - first < kCacheGroup ? n : first + kCacheGroup;
    *scales = scale_of(x + first, end - first);
    const float inverse = inverse_of(*scales);
    for (int64_t i = first; i < end; i += 16) {
      if (i + 16 <= end) {
        store_i8(codes + i, quantize_16(load(x + i), inverse));
        continue;
      }
      int8_t last[16];
      store_i8(last, quantize_16(load(x + i, end - i), inverse));
      __builtin_memcpy(codes + i, last, static_cast<uint64_t>(end - i));
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
