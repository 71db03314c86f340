// Rotations of panels: quant/rotation.py is the numpy twin, and says what is computed. To the bit: additions of two
// numbers, and products with powers of two or one constant, in one order.
#pragma once

#include "kernels/columns.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

// Column k of a panel is multiplied by -1 where bit k % 32 of word k / 32 is set: the first 256 bits of pi's fraction.
constexpr uint32_t kSigns[kPanelCols / 32] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344,
                                              0xa4093822, 0x299f31d0, 0x082efa98, 0xec4e6c89};

struct SignTable {
  alignas(64) float v[kPanelCols];
};
constexpr SignTable make_signs() {
  SignTable signs{};
  for (int64_t k = 0; k < kPanelCols; ++k) signs.v[k] = kSigns[k / 32] >> k % 32 & 1 ? -1.0f : 1.0f;
  return signs;
}
constexpr SignTable kSignTable = make_signs();

// The width of the first block of a panel of `cols` columns, a multiple of kPartCols: the largest power of two.
constexpr int64_t rotated_width(int64_t cols) {
  int64_t width = kPanelCols;
  while (width > cols) width /= 2;
  return width;
}

// What a block's sums are multiplied by: 1 / sqrt(width).
constexpr float rotation_factor(int64_t width) {
  return width == 256 ? 0.0625f : width == 128 ? 0.08838834764831845f : width == 64 ? 0.125f : 0.17677669529663687f;
}

// The Hadamard transform of kVectors vectors, 16 numbers each, or in every lane of 16 kVectors of them.
template <int kVectors>
DEEPMNN_INLINE void add_and_subtract(F32x16 (&v)[kVectors], int apart) {
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    if (i & apart) continue;
    const F32x16 a = v[i], b = v[i + apart];
    v[i] = a + b;
    v[i + apart] = a - b;
  }
}
template <int kVectors>
DEEPMNN_INLINE void hadamard(F32x16 (&v)[kVectors]) {
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) v[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v[i]))));
  DEEPMNN_UNROLL
  for (int apart = 1; apart < kVectors; apart *= 2) add_and_subtract(v, apart);
}

// A block of 16 kVectors numbers: signs, then the transform.
template <int kVectors>
DEEPMNN_INLINE void rotate_block(const float* x, int64_t n, const float* signs, float* y) {
  F32x16 v[kVectors];
  const F32x16 factor = splat(rotation_factor(16 * kVectors));
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) {
    const int64_t left = n - 16 * i;
    v[i] = (left >= 16 ? load(x + 16 * i) : load(x + 16 * i, left > 0 ? left : 0)) * load(signs + 16 * i) * factor;
  }
  hadamard(v);
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) store(y + 16 * i, v[i]);
}
// And back: the transform, then signs.
template <int kVectors>
DEEPMNN_INLINE void unrotate_block(float* x, const float* signs) {
  F32x16 v[kVectors];
  const F32x16 factor = splat(rotation_factor(16 * kVectors));
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) v[i] = load(x + 16 * i) * factor;
  hadamard(v);
  DEEPMNN_UNROLL
  for (int i = 0; i < kVectors; ++i) store(x + 16 * i, v[i] * load(signs + 16 * i));
}

// Calls block(count, first) for the blocks of a panel of `cols` columns (a multiple of kPartCols): count vectors of 16
// from column `first` on.
template <class Block>
DEEPMNN_INLINE void for_rotated_blocks(int64_t cols, Block&& block) {
  for (int64_t first = 0; first < cols;) {
    const int64_t width = rotated_width(cols - first);
    if (width == 256) {
      block(Count<16>{}, first);
    } else if (width == 128) {
      block(Count<8>{}, first);
    } else if (width == 64) {
      block(Count<4>{}, first);
    } else {
      block(Count<2>{}, first);
    }
    first += width;
  }
}

// n columns (1 .. kPanelCols) of a panel to y [n rounded up to kPartCols]; in place is fine where there is room.
DEEPMNN_INLINE void rotate_panel(const float* x, int64_t n, float* y) {
  for_rotated_blocks((n + kPartCols - 1) / kPartCols * kPartCols, [&](auto count, int64_t first) {
    rotate_block<count.value>(x + first, n - first, kSignTable.v + first, y + first);
  });
}

// A panel of `cols` columns (a multiple of kPartCols), in place.
DEEPMNN_INLINE void unrotate_panel(float* x, int64_t cols) {
  for_rotated_blocks(cols,
                     [&](auto count, int64_t first) { unrotate_block<count.value>(x + first, kSignTable.v + first); });
}

// 16 rows at a time: lane r of column k is row r of a block.
DEEPMNN_INLINE void rotate_columns(Columns& columns, int64_t cols) {
  for_rotated_blocks(cols, [&](auto count, int64_t first) {
    constexpr int64_t kWidth = 16 * count.value;
    float(*const v)[kBlockRows] = columns.v + first;
    const F32x16 factor = splat(rotation_factor(kWidth));
    for (int64_t k = 0; k < kWidth; ++k) store(v[k], load(v[k]) * splat(kSignTable.v[first + k]) * factor);
    for (int64_t apart = 1; apart < kWidth; apart *= 2) {
      for (int64_t k = 0; k < kWidth; ++k) {
        if (k & apart) continue;
        const F32x16 a = load(v[k]), b = load(v[k + apart]);
        store(v[k], a + b);
        store(v[k + apart], a - b);
      }
    }
  });
}

inline void rotate_rows_kernel(const float* x, int64_t n, int64_t cols, float* y) {
  const int64_t stored = (cols + kPartCols - 1) / kPartCols * kPartCols;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t first = 0; first < cols; first += kPanelCols) {
      const int64_t left = cols - first < kPanelCols ? cols - first : kPanelCols;
      rotate_panel(x + row * cols + first, left, y + row * stored + first);
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
