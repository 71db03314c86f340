#include "kernels/formats.h"

namespace deepmnn {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t stored_cols(Format format, int64_t cols) { return round_up(cols, info_of(format).columns); }

int64_t block_nbytes(Format format, int64_t cols) {
  const int64_t codes = stored_cols(format, cols) * info_of(format).bits / 8;
  const int64_t scales = is_quantized(format) ? panel_count(cols) * 2 : 0;  // fp16
  return kBlockRows * (codes + scales);
}

int64_t packed_nbytes(Format format, int64_t rows, int64_t cols) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const bool matrix = format != Format::vector;
  return round_up(matrix ? blocks * block_nbytes(format, cols) : rows * cols * 4, 64);
}

}  // namespace deepmnn
