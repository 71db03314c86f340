// Weights in and out of the layouts of docs/layouts.md. quant/pack.py is the numpy twin of quantize_pack, to the byte.
#pragma once

#include "kernels/kernels.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// Divisors of a group's signed maximum that are tried as scales, in this order; the first best is kept. A negative one
// puts the largest magnitude at the longer, negative end of the codes.
constexpr float kDivisorsW4[] = {-8.0f, -8.5f, -9.0f, -9.5f, -10.0f, -11.0f, 7.0f, -7.5f};
constexpr float kDivisorsW8[] = {-128.0f, 127.0f};

// Columns of 16 rows: lane r of column[k] is row r. Missing rows and columns are 0.
struct Columns {
  float v[kPanelCols][16];
};

// Columns of the panel that begins at `col`, with padding.
DEEPMNN_INLINE int64_t padded_panel(const Weight& shape, int64_t col) {
  const int64_t left = stored_cols(shape.format, shape.cols, shape.group_size) - col;
  return left < kPanelCols ? left : kPanelCols;
}

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

// Of columns [begin, begin + n): the element of largest magnitude of each row, sign kept; the first one on ties.
DEEPMNN_INLINE F32x16 signed_max(const Columns& columns, int64_t begin, int64_t n) {
  F32x16 best = load(columns.v[begin]);
  for (int64_t k = begin + 1; k < begin + n; ++k) {
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

DEEPMNN_INLINE F32x16 squared_error(const Columns& columns, int64_t begin, int64_t n, const Codes& codes) {
  F32x16 error = splat(0.0f);
  for (int64_t k = begin; k < begin + n; ++k) {
    const F32x16 x = load(columns.v[k]), difference = x - to_float(codes.of(x)) * codes.scale;
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
    const F32x16 error = squared_error(columns, begin, n, codes_for(scale, offset));
    best = c == 0 ? scale : select_less(error, best_error, scale, best);
    best_error = c == 0 ? error : select_less(error, best_error, error, best_error);
  }
  return best;
}

// Four columns of signed codes: row r, column j at byte 4 r + j.
DEEPMNN_INLINE void store_quad(const Columns& columns, int64_t k, const Codes& codes, int8_t* out) {
  for (int64_t j = 0; j < 4; ++j) {
    int8_t lanes[16];
    store_i8(lanes, codes.of(load(columns.v[k + j])));
    for (int r = 0; r < 16; ++r) out[4 * r + j] = lanes[r];
  }
}

// Scales, of which those of padded rows are 0; → what follows.
DEEPMNN_INLINE uint8_t* store_scales(F32x16 scale, int64_t rows, uint8_t* out) {
  uint16_t halves[16];
  store_f16(halves, scale);
  for (int64_t r = rows; r < 16; ++r) halves[r] = 0;
  __builtin_memcpy(out, halves, sizeof(halves));
  return out + sizeof(halves);
}

// The panel of `cols` columns, as many rows of which exist; → what follows it.
DEEPMNN_INLINE uint8_t* pack_panel_w8(const Columns& columns, int64_t cols, int64_t rows, uint8_t* out) {
  const F32x16 scale = best_scale<true>(columns, 0, cols, 128.0f, kDivisorsW8, 2);
  const Codes codes = codes_for(scale, 128.0f);
  for (int64_t k = 0; k < cols; k += 4, out += 64) {
    int8_t quad[64];
    store_quad(columns, k, codes, quad);
    for (int i = 0; i < 64; ++i) out[i] = static_cast<uint8_t>(quad[i] + 128);
  }
  return store_scales(scale, rows, out);
}

// The multiplier of a group: its own scale in units, rounded, or the number below or above, whichever has the least
// squared error.
DEEPMNN_INLINE F32x16 best_multiplier(const Columns& columns, int64_t begin, int64_t n, F32x16 own, F32x16 unit) {
  const F32x16 zero = splat(0.0f), limit = splat(15.0f);
  const auto clamp = [&](F32x16 x) { return min(limit, max(zero - limit, x)); };
  const F32x16 safe = select_less(zero, unit, unit, splat(1.0f));
  const F32x16 middle = to_float(to_int(clamp(select_less(zero, unit, own / safe, zero))));
  F32x16 best = zero, best_error = zero;
  for (int i = 0; i < 3; ++i) {
    const F32x16 multiplier = clamp(middle + splat(i == 0 ? 0.0f : i == 1 ? -1.0f : 1.0f));
    const F32x16 error = squared_error(columns, begin, n, codes_for(multiplier * unit, 8.0f));
    best = i == 0 ? multiplier : select_less(error, best_error, multiplier, best);
    best_error = i == 0 ? error : select_less(error, best_error, error, best_error);
  }
  return best;
}

DEEPMNN_INLINE uint8_t* pack_panel_w4(const Columns& columns, int64_t cols, int64_t rows, int64_t group_size,
                                      uint8_t* out) {
  F32x16 own[kPanelCols / kPartCols], largest = splat(0.0f);
  const int64_t groups = cols / group_size;
  for (int64_t g = 0; g < groups; ++g) {
    own[g] = best_scale<false>(columns, g * group_size, group_size, 8.0f, kDivisorsW4, 8);
    largest = max(largest, magnitude(own[g]));
  }
  const F32x16 scale = round_f16(min(splat(65504.0f), largest * splat(16.0f / 15.0f))), unit = scale * splat(0.0625f);
  int8_t multipliers[kPanelCols / kPartCols][16];
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * group_size;
    const F32x16 multiplier = best_multiplier(columns, begin, group_size, own[g], unit);
    store_i8(multipliers[g], to_int(multiplier));
    for (int64_t r = rows; r < 16; ++r) multipliers[g][r] = 0;
    const Codes codes = codes_for(multiplier * unit, 8.0f);
    for (int64_t k = begin; k < begin + group_size; k += 8, out += 64) {
      int8_t low[64], high[64];
      store_quad(columns, k, codes, low);
      store_quad(columns, k + 4, codes, high);
      for (int i = 0; i < 64; ++i) {
        const bool back = multipliers[g][i / 4] < 0;
        out[i] = static_cast<uint8_t>(back ? (7 - low[i]) | (7 - high[i]) << 4 : (8 + low[i]) | (8 + high[i]) << 4);
      }
    }
  }
  __builtin_memcpy(out, multipliers, static_cast<uint64_t>(groups) * sizeof(multipliers[0]));
  return store_scales(scale, rows, out + groups * 16);
}

DEEPMNN_INLINE void pack_floats(const float* w, const Weight& shape, int64_t row, uint8_t* out) {
  Columns columns;
  for (int64_t col = 0; col < shape.cols; col += kPanelCols) {
    const int64_t n = shape.cols - col < kPanelCols ? shape.cols - col : kPanelCols;
    gather_columns(w, shape, row, col, kPanelCols, columns);
    if (shape.format == Format::f32) {
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
  const int64_t block_bytes = block_nbytes(shape.format, shape.cols, shape.group_size);
  for (int64_t block = begin; block < end; ++block) {
    uint8_t* at = out + block * block_bytes;
    if (shape.format == Format::f32 || shape.format == Format::bf16) {
      pack_floats(w, shape, block * kBlockRows, at);
      continue;
    }
    Columns columns;
    const int64_t row = block * kBlockRows, rows = shape.rows - row < 0 ? 0 : shape.rows - row;
    for (int64_t col = 0; col < shape.cols; col += kPanelCols) {
      const int64_t cols = padded_panel(shape, col);
      gather_columns(w, shape, row, col, cols, columns);
      at = shape.format == Format::w4 ? pack_panel_w4(columns, cols, rows, shape.group_size, at)
                                      : pack_panel_w8(columns, cols, rows, at);
    }
  }
}

// Row `lane` of a panel at w: the n columns that exist.
DEEPMNN_INLINE void decode_panel(const uint8_t* w, const Weight& shape, int64_t cols, int64_t lane, int64_t n,
                                 float* y) {
  const bool w4 = shape.format == Format::w4;
  const uint8_t* const multipliers = w + cols * (w4 ? 8 : 16);
  float scales[16];
  store(scales, load_f16(multipliers + (w4 ? cols / shape.group_size * 16 : 0)));
  const float scale = w4 ? scales[lane] * (1.0f / 16) : scales[lane];
  for (int64_t k = 0; k < n; ++k) {
    const uint8_t byte = w4 ? w[k / 8 * 64 + 4 * lane + k % 4] : w[k / 4 * 64 + 4 * lane + k % 4];
    int32_t code = byte - 128;
    if (w4) {
      const int32_t multiplier = static_cast<int8_t>(multipliers[k / shape.group_size * 16 + lane]);
      const int32_t nibble = k % 8 < 4 ? byte & 15 : byte >> 4;
      code = multiplier * (multiplier < 0 ? 7 - nibble : nibble - 8);
    }
    y[k] = static_cast<float>(code) * scale;
  }
}

inline void decode_row_kernel(const Weight& weight, int64_t row, float* y) {
  const int64_t lane = row % kBlockRows;
  const uint8_t* w = weight.data + row / kBlockRows * block_nbytes(weight.format, weight.cols, weight.group_size);
  if (weight.format == Format::w8 || weight.format == Format::w4) {
    for (int64_t col = 0; col < weight.cols; col += kPanelCols) {
      const int64_t left = weight.cols - col, cols = padded_panel(weight, col);
      decode_panel(w, weight, cols, lane, left < kPanelCols ? left : kPanelCols, y + col);
      w += block_nbytes(weight.format, cols, weight.group_size);
    }
    return;
  }
  for (int64_t k = 0; k < weight.cols; ++k) {
    uint32_t value = 0;
    if (weight.format == Format::bf16) {
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
