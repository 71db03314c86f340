// Codes and floats to stored bytes and back (docs/layouts.md): quant/layout.py is the numpy twin, to the byte.
#pragma once

#include "kernels/columns.h"
#include "kernels/group_scales.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

// The code of each level, at 128 + level; of a number that is none code 0.
struct CodeTable {
  uint8_t v[256] = {};
  explicit CodeTable(const FormatInfo& format) {
    for (int code = 0; code < 1 << format.bits; ++code) v[128 + level_of(format, code)] = static_cast<uint8_t>(code);
  }
};

// What is zero in all of a panel is so because of its scale; then its codes are 0, and the scale is not -0: its bytes
// are zeros, which need not be stored.
inline void pack_panel_kernel(const PanelCodes& panel, const Weight& shape, int64_t cols, uint8_t* out) {
  const FormatInfo& format = info_of(shape.format);
  const CodeTable table(format);
  uint16_t scales[kBlockRows];
  for (int r = 0; r < kBlockRows; ++r) scales[r] = panel.scales[r] & 0x7fff ? panel.scales[r] : 0;
  for (int64_t part = 0; part < cols; part += kPartCols) {
    uint8_t codes[kBlockRows][kPartCols];
    for (int r = 0; r < kBlockRows; ++r) {
      for (int64_t k = 0; k < kPartCols; ++k) codes[r][k] = scales[r] ? table.v[128 + panel.levels[r][part + k]] : 0;
    }
    for_planes(format.bits, [&](Plane plane) {
      const int per_byte = 8 / plane.bits;
      const uint32_t mask = ((1u << plane.bits) - 1) * 0x01010101u;  // four codes at a time: byte j is column j
      for (int64_t k = 0; k < kPartCols; k += 4 * per_byte, out += 4 * kBlockRows) {
        for (int r = 0; r < kBlockRows; ++r) {
          uint32_t bytes = 0;
          for (int i = 0; i < per_byte; ++i) {
            uint32_t four;
            __builtin_memcpy(&four, codes[r] + k + 4 * i, sizeof(four));
            bytes |= (four >> plane.shift & mask) << i * plane.bits;
          }
          __builtin_memcpy(out + 4 * r, &bytes, sizeof(bytes));
        }
      }
    });
  }
  __builtin_memcpy(out, scales, sizeof(scales));
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

// The codes of columns [0, cols) of row `lane` of a panel at w; cols is a multiple of kPartCols. w moves on to the
// panel's scales.
DEEPMNN_INLINE void read_codes(const uint8_t*& w, const FormatInfo& format, int64_t cols, int64_t lane,
                               int32_t (&codes)[kPanelCols]) {
  __builtin_memset(codes, 0, sizeof(codes));
  for (int64_t part = 0; part < cols; part += kPartCols) {
    for_planes(format.bits, [&](Plane plane) {
      const int64_t step = 4 * (8 / plane.bits);  // columns in 4 bytes of a row
      for (int64_t k = 0; k < kPartCols; ++k) {
        const int32_t byte = w[k / step * 4 * kBlockRows + 4 * lane + k % 4];
        codes[part + k] |= (byte >> k % step / 4 * plane.bits & ((1 << plane.bits) - 1)) << plane.shift;
      }
      w += kPartCols / step * 4 * kBlockRows;
    });
  }
}

// The numbers that codes of a panel stand for; its scales are at w. Of ours they are rotated.
DEEPMNN_INLINE void scale_codes(const uint8_t* w, const FormatInfo& format, const int32_t* codes, int64_t cols,
                                int64_t lane, float* y) {
  float scales[kBlockRows];
  store(scales, load_f16(w));
  for (int64_t k = 0; k < cols; ++k) y[k] = static_cast<float>(level_of(format, codes[k])) * scales[lane];
}
// Level times scale, then plus the minimum: each rounded once.
inline void scale_kept_codes(const uint8_t* w, const FormatInfo& format, const int32_t* codes, int64_t cols,
                             int64_t lane, float* y) {
  const int64_t groups = (cols + format.group - 1) / format.group;
  const ScaleReader reader(w, format, groups);
  for (int64_t g = 0; g < groups; ++g) {
    float scales[kBlockRows], lows[kBlockRows], minima[kBlockRows];
    store(scales, reader.scale(g));
    store(lows, reader.low(g));
    store(minima, reader.minimum(g));
    const int64_t end = (g + 1) * format.group < cols ? (g + 1) * format.group : cols;
    for (int64_t k = g * format.group; k < end; ++k) {
      const float level =
          has_table(format) ? static_cast<float>(format.levels[codes[k]]) : static_cast<float>(codes[k]) + lows[lane];
      y[k] = level * scales[lane] + minima[lane];
    }
  }
}

inline void decode_codes(const uint8_t* w, const Weight& weight, int64_t lane, float* y) {
  const FormatInfo& format = info_of(weight.format);
  for (int64_t col = 0; col < weight.cols; col += kPanelCols) {
    const int64_t left = weight.cols - col, cols = padded_panel(weight, col);
    alignas(64) float values[kPanelCols];
    int32_t codes[kPanelCols];
    const uint8_t* at = w;
    read_codes(at, format, cols, lane, codes);
    if (is_kept(weight.format)) {
      scale_kept_codes(at, format, codes, cols, lane, values);
    } else {
      scale_codes(at, format, codes, cols, lane, values);
      unrotate_panel(values, cols);
    }
    __builtin_memcpy(y + col, values, static_cast<uint64_t>(left < kPanelCols ? left : kPanelCols) * sizeof(float));
    w += block_nbytes(weight.format, cols);
  }
}

inline void decode_row_kernel(const Weight& weight, int64_t row, float* y) {
  const int64_t lane = row % kBlockRows;
  const uint8_t* w = weight.data + row / kBlockRows * block_nbytes(weight.format, weight.cols);
  if (is_quantized(weight.format)) return decode_codes(w, weight, lane, y);
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
