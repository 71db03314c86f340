#include "kernels/kernels.h"

namespace deepmnn {

int64_t block_nbytes(DType dtype, int64_t cols, int32_t group_size) {
  const int64_t groups = group_size > 0 ? (cols + group_size - 1) / group_size : 0;
  switch (dtype) {
    case DType::f32:
      return kBlockRows * cols * 4;
    case DType::bf16:
      return kBlockRows * (cols + cols % 2) * 2;
    case DType::w8:
      return kBlockRows * groups * (group_size + 2);
    case DType::w4:
      return kBlockRows * groups * (group_size / 2 + 2);
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
