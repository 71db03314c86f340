// Quantises activations to int8: one scale and one sum of codes per row and group (docs/layouts.md, "Activations").
#pragma once

namespace deepmnn::DEEPMNN_NS {

// One group of `size` codes, of which the first `n` columns exist. NaN or infinity in x becomes the scale of a group of
// zeros, so that a dot product with it is NaN: the fault is not lost.
DEEPMNN_INLINE void quantize_group(const float* x, int64_t n, int32_t size, int8_t* codes, float* scale,
                                   int32_t* total) {
  I32x16 top = splat_i32(0);  // magnitudes compare like their bits
  const I32x16 magnitude = splat_i32(0x7fffffff);
  for (int64_t i = 0; i < n; i += 16) top = max(top, bits(load(x + i, n - i < 16 ? n - i : 16)) & magnitude);
  const int32_t largest_bits = max_lane(top);
  float largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof(largest));
  const float step = largest / 127.0f;
  *scale = step;
  I32x16 sums = splat_i32(0);
  const bool usable = step > 0.0f && step <= 3.40282347e38f;
  const F32x16 divisor = splat(usable ? step : 1.0f), limit = splat(127.0f), zero = splat(0.0f);
  for (int64_t i = 0; i < size; i += 16) {
    const int64_t left = n - i < 0 ? 0 : (n - i < 16 ? n - i : 16);
    const F32x16 scaled = usable ? load(x + i, left) / divisor : zero;
    const I32x16 code = to_int(min(limit, max(zero - limit, scaled)));
    store_i8(codes + i, code);
    sums = sums + code;
  }
  *total = sum(sums);
}

inline void quantize_rows_kernel(const float* x, int64_t stride, int64_t n, int64_t cols, int32_t group_size,
                                 int8_t* codes, float* scales, int32_t* sums) {
  const int64_t groups = (cols + group_size - 1) / group_size;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t column = g * group_size, at = row * groups + g;
      const int64_t left = cols - column < group_size ? cols - column : group_size;
      quantize_group(x + row * stride + column, left, group_size, codes + at * group_size, scales + at, sums + at);
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
