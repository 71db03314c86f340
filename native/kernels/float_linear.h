// Products of the numbers that a stored matrix stands for with rows of floats: codes become floats in registers, and
// nothing is rounded to int8. For matrices that are read in two ways, W x and transposed(W) x, which must agree to the
// last bits of a float (ops/mla.h). Few rows; linear.h is several times as fast for many.
#pragma once

#include "kernels/linear.h"
#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

// Columns that one step reads of a block, and input rows of a tile: a step's sums fill half the registers.
template <Format kFormat>
constexpr int kStepCols = is_quantized(kFormat)     ? 4
                          : kFormat == Format::bf16 ? 2
                                                    : 1;
constexpr int kFloatRows = kVectorRegisters / 8;

// Bytes of a panel of `cols` stored columns of a block, scales included. Floats have panels, too, without scales.
template <Format kFormat>
constexpr int64_t panel_nbytes(int64_t cols) {
  if constexpr (is_quantized(kFormat)) return codes_nbytes<kFormat>(cols) + 2 * kBlockRows;
  return cols * kBlockRows * info_of(kFormat).bits / 8;
}

template <int kLevelBits>
DEEPMNN_INLINE F32x16 to_levels(I32x16 codes) {
  return to_float(codes - splat_i32(1 << (kLevelBits - 1)));
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
    const U8x64 codes = Of::vector(w + k / kPartCols * Of::kPartBytes, static_cast<int>(k % kPartCols / 4));
    out[0] = to_levels<Of::kLevelBits>(every_fourth<0>(codes));
    out[1] = to_levels<Of::kLevelBits>(every_fourth<1>(codes));
    out[2] = to_levels<Of::kLevelBits>(every_fourth<2>(codes));
    out[3] = to_levels<Of::kLevelBits>(every_fourth<3>(codes));
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

// Rows of W whose inputs are scaled together, for a panel at a time.
constexpr int64_t kScaledRows = 256;
template <int kRows>
struct Scaled {
  alignas(64) float v[kRows][kScaledRows];
};

// Of rows of W from `first` on: the inputs times the panel's scales; w is the panel in their first block.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void scale_inputs(const LinearTask& task, int64_t row, int64_t first, const uint8_t* w, int64_t cols,
                                 Scaled<kRows>& out) {
  const int64_t block_bytes = block_nbytes(kFormat, task.weight.cols);
  for (int64_t at = 0; at < kScaledRows && first + at < task.weight.rows; at += kBlockRows, w += block_bytes) {
    const int64_t left = task.weight.rows - first - at, n = left < kBlockRows ? left : kBlockRows;
    const F32x16 scale = panel_scale<kFormat>(w, cols);
    for (int r = 0; r < kRows; ++r) {
      const Rows& rows = task.rows;
      const float* x = rows.x + (rows.index ? rows.index[row + r] : row + r) * rows.stride;
      store(out.v[r] + at, load(x + first + at, n) * scale);
    }
  }
}

// Adds to y [kRows, kPanelCols] the panel's columns, each summed over `blocks` blocks with their inputs: 16 columns at
// a time, whose sums are brought together in a vector.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void add_columns(const uint8_t* w, int64_t block_bytes, int64_t blocks, int64_t cols,
                                const Scaled<kRows>& x, float (*y)[kPanelCols]) {
  for (int64_t first = 0; first < cols; first += 16) {
    F32x16 of_column[kRows][16];
    for (int64_t k = 0; k < 16; k += kStepCols<kFormat>) {
      StepSums<kFormat, kRows> acc;
      clear(acc);
      const uint8_t* at = w;
      for (int64_t block = 0; block < blocks && first + k < cols; ++block, at += block_bytes) {
        F32x16 columns[kStepCols<kFormat>];
        read_columns<kFormat>(at, first + k, columns);
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const F32x16 scaled = load(x.v[r] + block * kBlockRows);
          DEEPMNN_UNROLL
          for (int j = 0; j < kStepCols<kFormat>; ++j) acc.v[j][r] = fma(columns[j], scaled, acc.v[j][r]);
        }
      }
      DEEPMNN_UNROLL
      for (int j = 0; j < kStepCols<kFormat>; ++j) {
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) of_column[r][k + j] = acc.v[j][r];
      }
    }
    for (int r = 0; r < kRows; ++r) store(y[r] + first, load(y[r] + first) + sums(of_column[r]));
  }
}

// Input rows [row, row + kRows) times all blocks, transposed. What comes out of a quantised matrix is rotated.
template <Format kFormat, int kRows>
void float_rows_transposed(const LinearTask& task, int64_t row) {
  const int64_t block_bytes = block_nbytes(kFormat, task.weight.cols);
  for_panels<kFormat>(task.weight, [&](const uint8_t* w, int64_t first, int64_t cols, int64_t left) {
    alignas(64) float y[kRows][kPanelCols] = {};
    for (int64_t at = 0; at < task.weight.rows; at += kScaledRows, w += kScaledRows / kBlockRows * block_bytes) {
      const int64_t rows = task.weight.rows - at < kScaledRows ? task.weight.rows - at : kScaledRows;
      Scaled<kRows> x;
      scale_inputs<kFormat, kRows>(task, row, at, w, cols, x);
      add_columns<kFormat, kRows>(w, block_bytes, (rows + kBlockRows - 1) / kBlockRows, cols, x, y);
    }
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

inline void float_linear_kernel(const LinearTask& task) {
  with_format(task.weight.format, [&](auto format) { float_tiles<format.value, false>(task); });
}
inline void float_linear_transposed_kernel(const LinearTask& task) {
  with_format(task.weight.format, [&](auto format) { float_tiles<format.value, true>(task); });
}

}  // namespace deepmnn::DEEPMNN_NS
