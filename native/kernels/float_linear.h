// Products of the numbers that a stored matrix stands for with rows of floats: codes become floats in registers, and
// nothing is rounded to int8. For matrices that are read in two ways, W x and transposed(W) x, which must agree to the
// last bits of a float (ops/mla.h). Few rows; linear.h is several times as fast for many.
#pragma once

#include "kernels/linear.h"
#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

// Columns that one step reads of a block, and input rows of a tile: a step's sums fill half the registers.
template <Format kFormat>
constexpr int kStepCols = is_quantized(kFormat) ? 4 : kFormat == Format::bf16 ? 2 : 1;
constexpr int kFloatRows = kVectorRegisters / 8;

// Bytes of a panel of `cols` stored columns of a block, scales included. Floats have panels, too, without scales.
template <Format kFormat>
constexpr int64_t panel_nbytes(int64_t cols) {
  if constexpr (is_quantized(kFormat)) return codes_nbytes<kFormat>(cols) + 2 * kBlockRows;
  return cols * kBlockRows * info_of(kFormat).bits / 8;
}

// Columns k, k + 1, ... of the panel at w: numbers, or levels before they are scaled.
template <Format kFormat>
DEEPMNN_INLINE void read_columns(const uint8_t* w, int64_t k, F32x16 (&out)[kStepCols<kFormat>]) {
  if constexpr (kFormat == Format::f32) {
    out[0] = load(reinterpret_cast<const float*>(w + k * 64));
  } else if constexpr (kFormat == Format::bf16) {
    const I32x16 pair = load_i32(w + k * 32);
    out[0] = from_bits(shift_left(pair, 16));
    out[1] = from_bits(pair & splat_i32(-65536));
  } else {
    using Of = Codec<kFormat>;
    const int part = static_cast<int>(k / kPartCols);
    const I32x16 four = lanes_of(Of::vector(w + part * Of::kPartBytes, static_cast<int>(k % kPartCols / 4)));
    DEEPMNN_UNROLL
    for (int j = 0; j < 4; ++j) {
      out[j] = to_float((shift_right(four, 8 * j) & splat_i32(255)) - splat_i32(1 << (Of::kLevelBits - 1)));
    }
  }
}

// Of the panel at w, which has `cols` stored columns.
template <Format kFormat>
DEEPMNN_INLINE F32x16 panel_scale(const uint8_t* w, int64_t cols) {
  if constexpr (is_quantized(kFormat)) return load_f16(w + codes_nbytes<kFormat>(cols));
  return splat(1.0f);
}

// The sums of a step, for each of its columns and each row.
template <Format kFormat, int kRows>
using StepSums = Tile<kStepCols<kFormat>, kRows>;

// Calls panel(w, first, cols, left) for every panel of a matrix: its bytes in the first block, its first column, its
// stored columns and those that exist.
template <Format kFormat, class Function>
DEEPMNN_INLINE void for_panels(const Weight& weight, Function&& panel) {
  const int64_t stored = stored_cols(kFormat, weight.cols);
  const uint8_t* w = weight.data;
  for (int64_t first = 0; first < stored; first += kPanelCols) {
    const int64_t cols = stored - first < kPanelCols ? stored - first : kPanelCols;
    panel(w, first, cols, weight.cols - first < cols ? weight.cols - first : cols);
    w += panel_nbytes<kFormat>(cols);
  }
}

// Columns [first, first + n) of input row i of the task, as a panel of the weight meets them: rotated, or as they are.
template <Format kFormat>
DEEPMNN_INLINE void read_input(const LinearTask& task, int64_t i, int64_t first, int64_t n, float* to) {
  const float* from = task.rows.x + (task.rows.index ? task.rows.index[i] : i) * task.rows.stride + first;
  if constexpr (is_quantized(kFormat)) return rotate_panel(from, n, to);
  __builtin_memcpy(to, from, static_cast<uint64_t>(n) * sizeof(float));
  to[n] = 0.0f;  // bf16 stores an even number of columns
}

// Input rows [row, row + kRows) times all blocks. The first panel's results are stored, the others' added.
template <Format kFormat, int kRows>
void float_rows(LinearTask task, int64_t row) {
  constexpr int64_t kColumnBytes = kBlockRows * info_of(kFormat).bits / 8;
  const int64_t block_bytes = block_nbytes(kFormat, task.weight.cols);
  for_panels<kFormat>(task.weight, [&](const uint8_t* w, int64_t first, int64_t cols, int64_t left) {
    alignas(64) float x[kRows][kPanelCols + 16];
    for (int r = 0; r < kRows; ++r) read_input<kFormat>(task, row + r, first, left, x[r]);
    task.epilogue = first ? Epilogue::accumulate : Epilogue::store;
    for (int64_t block = 0; block * kBlockRows < task.out_cols; ++block, w += block_bytes) {
      StepSums<kFormat, kRows> acc;
      clear(acc);
      for (int64_t k = 0; k < cols; k += kStepCols<kFormat>) {
        F32x16 columns[kStepCols<kFormat>];
        prefetch(w + block_bytes + k * kColumnBytes);
        read_columns<kFormat>(w, k, columns);
        DEEPMNN_UNROLL
        for (int j = 0; j < kStepCols<kFormat>; ++j) {
          DEEPMNN_UNROLL
          for (int r = 0; r < kRows; ++r) acc.v[j][r] = fma(columns[j], splat(x[r][k + j]), acc.v[j][r]);
        }
      }
      const F32x16 scale = panel_scale<kFormat>(w, cols);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        F32x16 total = acc.v[0][r];
        DEEPMNN_UNROLL
        for (int j = 1; j < kStepCols<kFormat>; ++j) total = total + acc.v[j][r];
        write(task, block, row + r, total * scale);
      }
    }
  });
}

// Column k and those after it of kRows sums of rows, each row of W times a number of x.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void sum_columns(const LinearTask& task, const float* const (&x)[kRows], const uint8_t* w, int64_t cols,
                                int64_t k, float (*y)[kPanelCols]) {
  const int64_t block_bytes = block_nbytes(kFormat, task.weight.cols);
  StepSums<kFormat, kRows> acc;
  clear(acc);
  for (int64_t at = 0; at < task.weight.rows; at += kBlockRows, w += block_bytes) {
    const int64_t n = task.weight.rows - at < kBlockRows ? task.weight.rows - at : kBlockRows;
    F32x16 columns[kStepCols<kFormat>];
    read_columns<kFormat>(w, k, columns);
    const F32x16 scale = panel_scale<kFormat>(w, cols);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F32x16 scaled = load(x[r] + at, n) * scale;
      DEEPMNN_UNROLL
      for (int j = 0; j < kStepCols<kFormat>; ++j) acc.v[j][r] = fma(columns[j], scaled, acc.v[j][r]);
    }
  }
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    DEEPMNN_UNROLL
    for (int j = 0; j < kStepCols<kFormat>; ++j) y[r][k + j] = sum(acc.v[j][r]);
  }
}

// Input rows [row, row + kRows) times all blocks, transposed. What comes out of a quantised matrix is rotated.
template <Format kFormat, int kRows>
void float_rows_transposed(const LinearTask& task, int64_t row) {
  const float* x[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = task.rows.x + (task.rows.index ? task.rows.index[row + r] : row + r) * task.rows.stride;
  }
  for_panels<kFormat>(task.weight, [&](const uint8_t* w, int64_t first, int64_t cols, int64_t left) {
    alignas(64) float y[kRows][kPanelCols];
    for (int64_t k = 0; k < cols; k += kStepCols<kFormat>) sum_columns<kFormat, kRows>(task, x, w, cols, k, y);
    for (int r = 0; r < kRows; ++r) {
      if constexpr (is_quantized(kFormat)) unrotate_panel(y[r], cols);
      __builtin_memcpy(task.y + (row + r) * task.y_stride + first, y[r], static_cast<uint64_t>(left) * sizeof(float));
    }
  });
}

template <Format kFormat, bool kTransposed>
void float_tiles(const LinearTask& task) {
  const EvenTiles<kFloatRows> tiles(task.rows.n);
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    with_count<1, kFloatRows>(tiles.size(tile), [&](auto count) {
      if constexpr (kTransposed) {
        float_rows_transposed<kFormat, count.value>(task, tiles.first(tile));
      } else {
        float_rows<kFormat, count.value>(task, tiles.first(tile));
      }
    });
  }
}

template <bool kTransposed>
void float_product(const LinearTask& task) {
  switch (task.weight.format) {
    case Format::f32:
      return float_tiles<Format::f32, kTransposed>(task);
    case Format::bf16:
      return float_tiles<Format::bf16, kTransposed>(task);
    case Format::w8:
      return float_tiles<Format::w8, kTransposed>(task);
    case Format::w6:
      return float_tiles<Format::w6, kTransposed>(task);
    case Format::w5:
      return float_tiles<Format::w5, kTransposed>(task);
    case Format::w4:
      return float_tiles<Format::w4, kTransposed>(task);
    case Format::w3:
      return float_tiles<Format::w3, kTransposed>(task);
    case Format::vector:
      return;  // not a matrix
  }
}

inline void float_linear_kernel(const LinearTask& task) { float_product<false>(task); }
inline void float_linear_transposed_kernel(const LinearTask& task) { float_product<true>(task); }

}  // namespace deepmnn::DEEPMNN_NS
