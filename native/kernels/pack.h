// Weights in and out of the layouts of docs/layouts.md. quant/pack.py is the numpy twin of quantize_pack, to the byte.
#pragma once

#include "kernels/kernels.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

constexpr int kMaxGroup = 128;

// Divisors of a group's signed maximum that are tried as scales, in this order; the first best is kept. A negative one
// puts the largest magnitude at the longer, negative end of the codes.
constexpr float kDivisorsW4[] = {-8.0f, -8.5f, -9.0f, -9.5f, -10.0f, -11.0f, 7.0f, -7.5f};
constexpr float kDivisorsW8[] = {-128.0f, 127.0f};

// Columns of 16 rows: lane r of column[k] is row r. Missing rows and columns are 0.
struct Columns {
  float v[kMaxGroup][16];
};

DEEPMNN_INLINE void gather_columns(const float* w, const Weight& shape, int64_t row, int64_t col, int64_t count,
                                   Columns& out) {
  const int64_t rows = shape.rows - row < 16 ? shape.rows - row : 16;
  const int64_t cols = shape.cols - col < count ? shape.cols - col : count;
  __builtin_memset(out.v, 0, static_cast<uint64_t>(count) * sizeof(out.v[0]));
  for (int64_t r = 0; r < rows; ++r) {
    const float* source = w + (row + r) * shape.cols + col;
    for (int64_t k = 0; k < cols; ++k) out.v[k][r] = source[k];
  }
}

DEEPMNN_INLINE F32x16 magnitude(F32x16 x) { return from_bits(bits(x) & splat_i32(0x7fffffff)); }

// The element of largest magnitude of each row, sign kept; the first one on ties.
DEEPMNN_INLINE F32x16 signed_max(const Columns& columns, int32_t n) {
  F32x16 best = load(columns.v[0]);
  for (int32_t k = 1; k < n; ++k) {
    const F32x16 x = load(columns.v[k]);
    best = select_less(magnitude(best), magnitude(x), x, best);
  }
  return best;
}

struct Codes {
  F32x16 scale, inverse, low, high;
  DEEPMNN_INLINE I32x16 of(F32x16 w) const { return to_int(min(high, max(low, w * inverse))); }
};

DEEPMNN_INLINE Codes codes_for(F32x16 scale, float offset) {
  const F32x16 zero = splat(0.0f), one = splat(1.0f);
  const F32x16 safe = select_less(zero, magnitude(scale), scale, one);
  const F32x16 inverse = select_less(zero, magnitude(scale), one / safe, zero);
  return {scale, inverse, splat(-offset), splat(offset - 1.0f)};
}

// Scale of each row with the least squared error, rounded to fp16.
DEEPMNN_INLINE F32x16 best_scale(const Columns& columns, int32_t n, float offset, const float* divisors, int count) {
  const F32x16 top = signed_max(columns, n), limit = splat(65504.0f), zero = splat(0.0f);
  F32x16 best = zero, best_error = zero;
  for (int c = 0; c < count; ++c) {
    uint16_t half[16];
    store_f16(half, min(limit, max(zero - limit, top / splat(divisors[c]))));
    const Codes codes = codes_for(load_f16(half), offset);
    F32x16 error = zero;
    for (int32_t k = 0; k < n; ++k) {
      const F32x16 x = load(columns.v[k]), difference = x - to_float(codes.of(x)) * codes.scale;
      error = error + difference * difference;
    }
    best = c == 0 ? codes.scale : select_less(error, best_error, codes.scale, best);
    best_error = c == 0 ? error : select_less(error, best_error, error, best_error);
  }
  return best;
}

// Four columns of codes, offset added: row r, column j at byte 4 r + j.
DEEPMNN_INLINE void store_quad(const Columns& columns, int32_t k, const Codes& codes, int32_t offset, uint8_t* out) {
  for (int32_t j = 0; j < 4; ++j) {
    int8_t lanes[16];
    store_i8(lanes, codes.of(load(columns.v[k + j])));
    for (int r = 0; r < 16; ++r) out[4 * r + j] = static_cast<uint8_t>(lanes[r] + offset);
  }
}

DEEPMNN_INLINE void pack_group(const float* w, const Weight& shape, int64_t row, int64_t col, uint8_t* out) {
  const bool w4 = shape.dtype == DType::w4;
  const int32_t size = shape.group_size, offset = w4 ? 8 : 128;
  Columns columns;
  gather_columns(w, shape, row, col, size, columns);
  const float bound = static_cast<float>(offset);
  const F32x16 scale =
      w4 ? best_scale(columns, size, bound, kDivisorsW4, 8) : best_scale(columns, size, bound, kDivisorsW8, 2);
  const Codes codes = codes_for(scale, bound);
  for (int32_t k = 0; k < size; k += w4 ? 8 : 4, out += 64) {
    store_quad(columns, k, codes, offset, out);
    if (!w4) continue;
    uint8_t high[64];
    store_quad(columns, k + 4, codes, offset, high);
    for (int i = 0; i < 64; ++i) out[i] = static_cast<uint8_t>(out[i] | high[i] << 4);
  }
  uint16_t halves[16];
  store_f16(halves, scale);
  for (int64_t r = shape.rows - row < 0 ? 0 : shape.rows - row; r < 16; ++r) halves[r] = 0;  // rows of padding
  __builtin_memcpy(out, halves, sizeof(halves));
}

DEEPMNN_INLINE void pack_floats(const float* w, const Weight& shape, int64_t row, uint8_t* out) {
  Columns columns;
  for (int64_t col = 0; col < shape.cols; col += kMaxGroup) {
    const int64_t n = shape.cols - col < kMaxGroup ? shape.cols - col : kMaxGroup;
    gather_columns(w, shape, row, col, kMaxGroup, columns);
    if (shape.dtype == DType::f32) {
      __builtin_memcpy(out, columns.v, static_cast<uint64_t>(n) * 64);
      out += n * 64;
      continue;
    }
    for (int64_t k = 0; k < n; k += 2, out += 64) {
      uint16_t first[16], second[16], pairs[32];
      store_u16(first, round_bf16(load(columns.v[k])));
      store_u16(second, round_bf16(load(columns.v[k + 1])));
      for (int r = 0; r < 16; ++r) {
        pairs[2 * r] = first[r];
        pairs[2 * r + 1] = second[r];
      }
      __builtin_memcpy(out, pairs, sizeof(pairs));
    }
  }
}

inline void quantize_pack_kernel(const float* w, const Weight& shape, int64_t begin, int64_t end, uint8_t* out) {
  const int64_t block_bytes = block_nbytes(shape.dtype, shape.cols, shape.group_size);
  for (int64_t block = begin; block < end; ++block) {
    uint8_t* at = out + block * block_bytes;
    if (shape.dtype == DType::f32 || shape.dtype == DType::bf16) {
      pack_floats(w, shape, block * kBlockRows, at);
      continue;
    }
    const int64_t group_bytes = block_nbytes(shape.dtype, shape.group_size, shape.group_size);
    for (int64_t col = 0; col < shape.cols; col += shape.group_size, at += group_bytes) {
      pack_group(w, shape, block * kBlockRows, col, at);
    }
  }
}

// One row of a quantised group: codes at w, 16 scales behind them.
DEEPMNN_INLINE void decode_group(const uint8_t* w, const Weight& shape, int64_t lane, int64_t n, float* y) {
  const bool w4 = shape.dtype == DType::w4;
  float scales[16];
  store(scales, load_f16(w + shape.group_size * (w4 ? 8 : 16)));
  for (int64_t k = 0; k < n; ++k) {
    const uint8_t byte = w4 ? w[k / 8 * 64 + 4 * lane + k % 4] : w[k / 4 * 64 + 4 * lane + k % 4];
    const int32_t code = w4 ? (k % 8 < 4 ? byte & 15 : byte >> 4) - 8 : byte - 128;
    y[k] = static_cast<float>(code) * scales[lane];
  }
}

inline void decode_row_kernel(const Weight& weight, int64_t row, float* y) {
  const int64_t lane = row % kBlockRows;
  const uint8_t* w = weight.data + row / kBlockRows * block_nbytes(weight.dtype, weight.cols, weight.group_size);
  if (weight.dtype == DType::w8 || weight.dtype == DType::w4) {
    const int64_t group_bytes = block_nbytes(weight.dtype, weight.group_size, weight.group_size);
    for (int64_t col = 0; col < weight.cols; col += weight.group_size, w += group_bytes) {
      const int64_t left = weight.cols - col;
      decode_group(w, weight, lane, left < weight.group_size ? left : weight.group_size, y + col);
    }
    return;
  }
  for (int64_t k = 0; k < weight.cols; ++k) {
    uint32_t value = 0;
    if (weight.dtype == DType::bf16) {
      uint16_t half;
      __builtin_memcpy(&half, w + k / 2 * 64 + 4 * lane + 2 * (k % 2), sizeof(half));
      value = uint32_t{half} << 16;
    } else {
      __builtin_memcpy(&value, w + k * 64 + 4 * lane, sizeof(value));
    }
    __builtin_memcpy(y + k, &value, sizeof(value));
  }
}

}  // namespace deepmnn::DEEPMNN_NS
