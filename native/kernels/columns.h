// Columns of a matrix of floats, brought into vectors: lane r is row r of a block.
#pragma once

#include "kernels/kernels.h"

namespace deepmnn::DEEPMNN_NS {

// Columns of 16 rows: lane r of v[k] is row r. Missing rows and columns are 0.
struct Columns {
  float v[kPanelCols][kBlockRows];
};

// `count` columns of 16 rows from w [rows, cols] at row and col.
DEEPMNN_INLINE void gather_columns(const float* w, const Weight& shape, int64_t row, int64_t col, int64_t count,
                                   Columns& out) {
  const int64_t rows = shape.rows - row < kBlockRows ? shape.rows - row : kBlockRows;
  const int64_t cols = shape.cols - col < count ? shape.cols - col : count;
  __builtin_memset(out.v, 0, static_cast<uint64_t>(count) * sizeof(out.v[0]));
  for (int64_t r = 0; r < rows; ++r) {
    const float* source = w + (row + r) * shape.cols + col;
    for (int64_t k = 0; k < cols; ++k) out.v[k][r] = source[k];
  }
}

// Stored columns of the panel that begins at `col`, padding included.
DEEPMNN_INLINE int64_t padded_panel(const Weight& shape, int64_t col) {
  const int64_t left = stored_cols(shape.format, shape.cols) - col;
  return left < kPanelCols ? left : kPanelCols;
}

}  // namespace deepmnn::DEEPMNN_NS
