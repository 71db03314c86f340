#include "kernels/kernels.h"

namespace deepmnn {

bool allows_group_size(Format format, int64_t group_size) {
  if (format == Format::w4) return group_size == 32 || group_size == 64 || group_size == 128;
  return group_size == (format == Format::w8 ? kPanelCols : 0);
}

const char* allowed_group_sizes(Format format) {
  return format == Format::w4 ? "32, 64 or 128" : format == Format::w8 ? "256" : "0";
}

int64_t stored_cols(Format format, int64_t cols, int32_t group_size) {
  const int64_t unit = format == Format::w4 ? group_size : kPartCols;
  return (cols + unit - 1) / unit * unit;
}

int64_t block_nbytes(Format format, int64_t cols, int32_t group_size) {
  switch (format) {
    case Format::f32:
      return kBlockRows * cols * 4;
    case Format::bf16:
      return kBlockRows * (cols + cols % 2) * 2;
    case Format::w8:
      return kBlockRows * (stored_cols(format, cols, group_size) + panel_count(cols) * 2);
    case Format::w4: {
      const int64_t stored = stored_cols(format, cols, group_size);
      return kBlockRows * (stored / 2 + stored / group_size + panel_count(cols) * 2);
    }
    case Format::vector:
      break;
  }
  return 0;  // a vector has no blocks
}

int64_t packed_nbytes(Format format, int64_t rows, int64_t cols, int32_t group_size) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t bytes = format == Format::vector ? rows * cols * 4 : blocks * block_nbytes(format, cols, group_size);
  return (bytes + 63) / 64 * 64;
}

}  // namespace deepmnn
