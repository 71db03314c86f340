#include "kernels/formats.h"

#include <string>
#include <vector>

namespace deepmnn {
namespace {

const FormatInfo& info_of(Format format) { return kFormats[static_cast<int>(format)]; }

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// "32, 64 or 128"
std::string in_words(const FormatInfo& info) {
  std::string text = std::to_string(info.group_sizes[0]);
  for (int i = 1; i < info.sizes; ++i) {
    text += (i + 1 < info.sizes ? ", " : " or ") + std::to_string(info.group_sizes[i]);
  }
  return text;
}

}  // namespace

bool is_quantized(Format format) { return info_of(format).offset > 0; }

bool allows_group_size(Format format, int64_t group_size) {
  const FormatInfo& info = info_of(format);
  for (int i = 0; i < info.sizes; ++i) {
    if (info.group_sizes[i] == group_size) return true;
  }
  return false;
}

const char* allowed_group_sizes(Format format) {
  static const std::vector<std::string> texts = [] {
    std::vector<std::string> made;
    for (const FormatInfo& info : kFormats) made.push_back(in_words(info));
    return made;
  }();
  return texts[static_cast<size_t>(format)].c_str();
}

int64_t stored_cols(Format format, int64_t cols, int32_t group_size) {
  const FormatInfo& info = info_of(format);
  return round_up(cols, info.multipliers ? group_size : info.columns);
}

int64_t block_nbytes(Format format, int64_t cols, int32_t group_size) {
  const FormatInfo& info = info_of(format);
  const int64_t stored = stored_cols(format, cols, group_size);
  int64_t row = stored * info.bits / 8;
  if (info.multipliers) row += stored / group_size;
  if (is_quantized(format)) row += panel_count(cols) * 2;  // scales, fp16
  return kBlockRows * row;
}

int64_t packed_nbytes(Format format, int64_t rows, int64_t cols, int32_t group_size) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const bool matrix = format != Format::vector;
  return round_up(matrix ? blocks * block_nbytes(format, cols, group_size) : rows * cols * 4, 64);
}

}  // namespace deepmnn
