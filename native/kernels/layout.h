// Codes and floats to stored bytes and back (docs/layouts.md): quant/layout.py is the numpy twin, to the byte.
#pragma once

#include "kernels/columns.h"
#include "kernels/kernels.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

inline void pack_panel_kernel(const PanelCodes& panel, const Weight& shape, int64_t cols, uint8_t* out) {
  constexpr uint32_t kBytes = 0x01010101;  // four codes at a time: byte j is column j
  const FormatInfo& format = kFormats[static_cast<int>(shape.format)];
  const int per_byte = 8 / format.bits;
  const uint32_t mask = ((1u << format.bits) - 1) * kBytes, zero = static_cast<uint32_t>(format.offset) * kBytes;
  for (int64_t k = 0; k < cols; k += 4 * per_byte, out += 4 * kBlockRows) {
    const int64_t group = format.multipliers ? k / shape.group_size : 0;
    for (int r = 0; r < kBlockRows; ++r) {
      const uint32_t turn = format.multipliers && panel.multipliers[r][group] < 0 ? ~0u : 0u;
      uint32_t bytes = 0;
      for (int i = 0; i < per_byte; ++i) {
        uint32_t codes;
        __builtin_memcpy(&codes, panel.codes[r] + k + 4 * i, sizeof(codes));
        bytes |= (((codes ^ turn) & mask) ^ zero) << i * format.bits;  // ^ zero: + offset, modulo all bits
      }
      __builtin_memcpy(out + 4 * r, &bytes, sizeof(bytes));
    }
  }
  for (int64_t g = 0; format.multipliers && g < cols / shape.group_size; ++g) {
    for (int r = 0; r < kBlockRows; ++r) *out++ = static_cast<uint8_t>(panel.multipliers[r][g]);
  }
  __builtin_memcpy(out, panel.scales, sizeof(panel.scales));
}

inline void pack_floats_kernel(const float* w, const Weight& shape, int64_t row, uint8_t* out) {
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

// Row `lane` of a panel of `cols` stored columns at w: the n columns that exist.
template <Format kFormat>
DEEPMNN_INLINE void decode_panel(const uint8_t* w, int64_t group_size, int64_t cols, int64_t lane, int64_t n,
                                 float* y) {
  constexpr FormatInfo format = kFormats[static_cast<int>(kFormat)];
  constexpr int64_t step = 4 * (8 / format.bits);  // columns
  const uint8_t* const multipliers = w + cols / step * 4 * kBlockRows;
  float scales[kBlockRows];
  store(scales, load_f16(multipliers + (format.multipliers ? cols / group_size * kBlockRows : 0)));
  const float scale = format.multipliers ? scales[lane] * (1.0f / (kMultiplierMax + 1)) : scales[lane];
  for (int64_t k = 0; k < n; ++k) {
    const int32_t byte = w[k / step * 4 * kBlockRows + 4 * lane + k % 4];
    const int32_t stored = byte >> k % step / 4 * format.bits & ((1 << format.bits) - 1);
    int32_t code = stored - format.offset;
    if constexpr (format.multipliers) {
      const int32_t multiplier = static_cast<int8_t>(multipliers[k / group_size * kBlockRows + lane]);
      code = multiplier * (multiplier < 0 ? format.offset - 1 - stored : code);
    }
    y[k] = static_cast<float>(code) * scale;
  }
}

template <Format kFormat>
DEEPMNN_INLINE void decode_codes(const uint8_t* w, const Weight& weight, int64_t lane, float* y) {
  for (int64_t col = 0; col < weight.cols; col += kPanelCols) {
    const int64_t left = weight.cols - col, cols = padded_panel(weight, col);
    decode_panel<kFormat>(w, weight.group_size, cols, lane, left < kPanelCols ? left : kPanelCols, y + col);
    w += block_nbytes(kFormat, cols, weight.group_size);
  }
}

inline void decode_row_kernel(const Weight& weight, int64_t row, float* y) {
  const int64_t lane = row % kBlockRows;
  const uint8_t* w = weight.data + row / kBlockRows * block_nbytes(weight.format, weight.cols, weight.group_size);
  if (weight.format == Format::w8) return decode_codes<Format::w8>(w, weight, lane, y);
  if (weight.format == Format::w4) return decode_codes<Format::w4>(w, weight, lane, y);
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
