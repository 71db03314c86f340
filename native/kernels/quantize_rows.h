// Quantises activations to int8: one scale and one sum of codes per row and group (docs/layouts.md, "Activations").
#pragma once

namespace deepmnn::DEEPMNN_NS {

// What numbers of a group with this scale are multiplied by: 0 for a scale that is no normal number.
DEEPMNN_INLINE float inverse_of(float step) {
  return step >= 1.17549435e-38f && step <= 3.40282347e38f ? 1.0f / step : 0.0f;
}

// The scale of a group whose largest magnitude has these bits, and its inverse. NaN or infinity in x becomes the scale
// of a group of zeros, so that a dot product with it is NaN: the fault is not lost.
struct GroupScale {
  float step, inverse;
};

DEEPMNN_INLINE GroupScale group_scale(int32_t largest_bits) {
  float largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof(largest));
  const float step = largest / 127.0f;
  return {step, inverse_of(step)};
}

// 16 codes; x times 0 may be NaN, so nothing is multiplied by it.
DEEPMNN_INLINE I32x16 quantize_16(F32x16 x, float inverse) {
  const F32x16 limit = splat(127.0f), zero = splat(0.0f);
  return to_int(min(limit, max(zero - limit, inverse == 0.0f ? zero : x * splat(inverse))));
}

// A group of 16 * kVectors columns, all of which exist.
template <int kVectors>
DEEPMNN_INLINE void quantize_whole(const float* x, int8_t* codes, float* scale, int32_t* total) {
  F32x16 v[kVectors];
  I32x16 top = splat_i32(0), sums = top;  // magnitudes compare like their bits
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    v[i] = load(x + 16 * i);
    top = max(top, bits(v[i]) & splat_i32(0x7fffffff));
  }
  const GroupScale group = group_scale(max_lane(top));
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    const I32x16 code = quantize_16(v[i], group.inverse);
    store_i8(codes + 16 * i, code);
    sums = sums + code;
  }
  *scale = group.step;
  *total = sum(sums);
}

// One group of `size` codes, of which the first `n` columns exist.
DEEPMNN_INLINE void quantize_part(const float* x, int64_t n, int32_t size, int8_t* codes, float* scale,
                                  int32_t* total) {
  I32x16 top = splat_i32(0), sums = top;
  for (int64_t i = 0; i < n; i += 16) {
    top = max(top, bits(load(x + i, n - i < 16 ? n - i : 16)) & splat_i32(0x7fffffff));
  }
  const GroupScale group = group_scale(max_lane(top));
  for (int64_t i = 0; i < size; i += 16) {
    const int64_t left = n - i < 0 ? 0 : (n - i < 16 ? n - i : 16);
    const I32x16 code = quantize_16(load(x + i, left), group.inverse);
    store_i8(codes + i, code);
    sums = sums + code;
  }
  *scale = group.step;
  *total = sum(sums);
}

DEEPMNN_INLINE void quantize_group(const float* x, int64_t n, int32_t size, int8_t* codes, float* scale,
                                   int32_t* total) {
  if (n < size) return quantize_part(x, n, size, codes, scale, total);
  if (size == 64) return quantize_whole<4>(x, codes, scale, total);
  if (size == 32) return quantize_whole<2>(x, codes, scale, total);
  quantize_whole<8>(x, codes, scale, total);
}

inline void quantize_rows_kernel(const float* x, int64_t stride, int64_t n, int64_t cols, const QuantizedRows& out) {
  const int64_t size = out.group_size;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t first = 0; first < cols; first += kPanelCols) {
      QuantizedRows to = out.from(row).from_panel(first / kPanelCols);
      const int64_t end = cols - first < kPanelCols ? cols : first + kPanelCols;
      for (int64_t column = first; column < end; column += size, to.codes += size) {
        const int64_t left = end - column < size ? end - column : size;
        quantize_group(x + row * stride + column, left, out.group_size, to.codes, to.scales++, to.sums++);
      }
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
