// The storage formats of weights: what the core knows of each, in one table. deepmnn/formats.py is its twin, and
// tests/test_formats.py holds one against the other; docs/layouts.md has the bytes.
#pragma once

#include <cstdint>

namespace deepmnn {

constexpr int kBlockRows = 16;  // output rows per block of a stored matrix
constexpr int64_t kPanelCols =
    256;                           // columns of a quantised matrix, or row, that share a scale and are rotated together
constexpr int64_t kPartCols = 32;  // columns whose codes lie together: stored columns are a multiple of these

constexpr int64_t panel_count(int64_t cols) { return (cols + kPanelCols - 1) / kPanelCols; }

enum class Format : uint32_t { vector = 0, f32 = 1, bf16 = 2, w8 = 3, w6 = 4, w5 = 5, w4 = 6, w3 = 7 };

struct FormatInfo {
  const char* name;
  int32_t bits;     // of one number, without scales
  int32_t columns;  // stored columns are a multiple of these
  int32_t offset;   // the stored code of zero: codes run from -offset to offset - 1. 0: floats
};

constexpr FormatInfo kFormats[] = {
    {"vector", 32, 1, 0},  // 0: by the number of the format
    {"f32", 32, 1, 0},     // 1
    {"bf16", 16, 2, 0},    // 2
    {"w8", 8, 32, 128},    // 3
    {"w6", 6, 32, 32},     // 4
    {"w5", 5, 32, 16},     // 5
    {"w4", 4, 32, 8},      // 6
    {"w3", 3, 32, 4},      // 7
};
constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

constexpr const FormatInfo& info_of(Format format) { return kFormats[static_cast<int>(format)]; }

// Whether it stores codes and scales; else floats.
constexpr bool is_quantized(Format format) { return info_of(format).offset > 0; }

// Columns of a matrix that are stored, padding included.
int64_t stored_cols(Format format, int64_t cols);

// Bytes of one block of 16 rows of a matrix, and of a whole weight padded to 64.
int64_t block_nbytes(Format format, int64_t cols);
int64_t packed_nbytes(Format format, int64_t rows, int64_t cols);

// Bytes of the codes of a part: kPartCols columns of a block.
constexpr int64_t part_nbytes(Format format) { return kPartCols * kBlockRows * info_of(format).bits / 8; }

// A code's bits lie in planes of 8, 4, 2 and 1 bits, one plane of a part after another: the powers of two that make up
// `bits`, the largest first, which holds the lowest bits of a code.
struct Plane {
  int bits;
  int shift;  // of its bits in a code
};
// Calls function(plane) for each plane of codes of so many bits.
template <class Function>
constexpr void for_planes(int bits, Function&& function) {
  int shift = 0;
  for (int size = 8; size > 0; size /= 2) {
    if (!(bits & size)) continue;
    function(Plane{size, shift});
    shift += size;
  }
}

}  // namespace deepmnn
