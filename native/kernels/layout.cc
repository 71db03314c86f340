#include "kernels/kernels.h"

namespace deepmnn {

bool allows_group_size(DType dtype, int64_t group_size) {
  if (dtype == DType::w4) return group_size == 32 || group_size == 64 || group_size == 128;
  return group_size == (dtype == DType::w8 ? kPanelCols : 0);
}

const char* allowed_group_sizes(DType dtype) {
  return dtype == DType::w4 ? "32, 64 or 128" : dtype == DType::w8 ? "256" : "0";
}

int64_t stored_cols(DType dtype, int64_t cols, int32_t group_size) {
  const int64_t unit = dtype == DType::w4 ? group_size : kPartCols;
  return (cols + unit - 1) / unit * unit;
}

int64_t block_nbytes(DType dtype, int64_t cols, int32_t group_size) {
  switch (dtype) {
    case DType::f32:
      return kBlockRows * cols * 4;
    case DType::bf16:
      return kBlockRows * (cols + cols % 2) * 2;
    case DType::w8:
      return kBlockRows * (stored_cols(dtype, cols, group_size) + panel_count(cols) * 2);
    case DType::w4: {
      const int64_t stored = stored_cols(dtype, cols, group_size);
      return kBlockRows * (stored / 2 + stored / group_size + panel_count(cols) * 2);
    }
    case DType::vector:
      break;
  }
  return 0;  // a vector has no blocks
}

int64_t packed_nbytes(DType dtype, int64_t rows, int64_t cols, int32_t group_size) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t bytes = dtype == DType::vector ? rows * cols * 4 : blocks * block_nbytes(dtype, cols, group_size);
  return (bytes + 63) / 64 * 64;
}

}  // namespace deepmnn
