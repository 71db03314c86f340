#include "kernels/formats.h"

namespace deepmnn {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t stored_cols(Format format, int64_t cols) { return round_up(cols, info_of(format).columns); }

int64_t block_nbytes(Format format, int64_t cols) {
  const FormatInfo& info = info_of(format);
  const int64_t stored = stored_cols(format, cols);
  const int64_t scales =
      stored / kPanelCols * scales_nbytes(info, kPanelCols) + scales_nbytes(info, stored % kPanelCols);
  return kBlockRows * (stored * info.bits / 8 + scales);
}

int64_t packed_nbytes(Format format, int64_t rows, int64_t cols) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const bool matrix = format != Format::vector;
  return round_up(matrix ? blocks * block_nbytes(format, cols) : rows * cols * 4, 64);
}

}  // namespace deepmnn
