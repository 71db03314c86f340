// The storage formats of weights: what the core knows of each, in one table. deepmnn/formats.py is its twin, and
// tests/test_formats.py holds one against the other; docs/layouts.md has the bytes.
#pragma once

#include <cstdint>

namespace deepmnn {

constexpr int kBlockRows = 16;       // output rows per block of a stored matrix
constexpr int64_t kPanelCols = 256;  // columns of a quantised matrix, or row, that share a scale
constexpr int64_t kPartCols = 32;    // every group, and what is stored of every quantised row, is a multiple of these
constexpr int kMultiplierMax = 15;   // multipliers are sixteenths of a scale, of either sign

constexpr int64_t panel_count(int64_t cols) { return (cols + kPanelCols - 1) / kPanelCols; }

enum class Format : uint32_t { vector = 0, f32 = 1, bf16 = 2, w8 = 3, w4 = 4 };

struct FormatInfo {
  const char* name;
  int32_t bits;            // of one number, without scales
  int32_t columns;         // stored columns are a multiple of these, or of a group that has a multiplier
  int32_t offset;          // the stored code of zero: codes run from -offset to offset - 1. 0: floats
  bool multipliers;        // groups have multipliers of their panel's scale
  int32_t sizes;           // how many group_sizes there are
  int32_t group_sizes[3];  // columns that may have a scale of their own; floats have no groups, so 0
};

constexpr FormatInfo kFormats[] = {
    // by the number of the format
    {"vector", 32, 1, 0, false, 1, {0}},     {"f32", 32, 1, 0, false, 1, {0}},
    {"bf16", 16, 2, 0, false, 1, {0}},       {"w8", 8, kPartCols, 128, false, 1, {kPanelCols}},
    {"w4", 4, 1, 8, true, 3, {32, 64, 128}},
};
constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

// Whether it stores codes and scales; else floats.
bool is_quantized(Format format);

// Whether a weight of this format may have this group size, and those that it may have in words.
bool allows_group_size(Format format, int64_t group_size);
const char* allowed_group_sizes(Format format);

// Columns of a matrix that are stored, padding included.
int64_t stored_cols(Format format, int64_t cols, int32_t group_size);

// Bytes of one block of 16 rows of a matrix, and of a whole weight padded to 64.
int64_t block_nbytes(Format format, int64_t cols, int32_t group_size);
int64_t packed_nbytes(Format format, int64_t rows, int64_t cols, int32_t group_size);

}  // namespace deepmnn
