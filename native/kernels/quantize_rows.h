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

inline void quantize_rows_kernel(const float* x, int64_t stride, int64_t n, int64_t cols, const QuantizedRows& out) {
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t first = 0; first < cols; first += kPanelCols) {
      const QuantizedRows to = out.from(row).from_panel(first / kPanelCols);
      const int64_t left = cols - first < kPanelCols ? cols - first : kPanelCols;
      quantize_panel(x + row * stride + first, left, to.codes, *to.heads);
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
