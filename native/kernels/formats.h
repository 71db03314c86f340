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
  int32_t bits;        // of one number, without scales
  int32_t columns;     // stored columns are a multiple of these
  int32_t level_bits;  // a code stands for an integer of so many bits, its level; 0: floats, without codes
  int8_t levels[32];   // of each code; all 0: a code's level is the code less half their number
};

// Levels of 2^bits codes: `half` of those without the top bit, and -1 - level of the same codes with it.
template <int kHalf>
constexpr FormatInfo with_levels(const char* name, int32_t bits, int32_t level_bits, const int8_t (&half)[kHalf]) {
  FormatInfo format{name, bits, 32, level_bits, {}};
  for (int i = 0; i < kHalf; ++i) {
    format.levels[i] = half[i];
    format.levels[kHalf + i] = static_cast<int8_t>(-1 - half[i]);
  }
  return format;
}
constexpr FormatInfo uniform(const char* name, int32_t bits) { return {name, bits, 32, bits, {}}; }

// Where a normal distribution is rounded with the least squared error (Lloyd 1982, Max 1960), in integers: the numbers
// of a rotated panel are nearly normal.
constexpr int8_t kLevelsW5[] = {2, 7, 12, 17, 22, 27, 33, 39, 45, 51, 58, 66, 75, 86, 100, 121};
constexpr int8_t kLevelsW4[] = {2, 7, 12, 18, 24, 31, 40, 53};
constexpr int8_t kLevelsW3[] = {6, 20, 36, 58};

constexpr FormatInfo kFormats[] = {
    {"vector", 32, 1, 0, {}},            // 0: by the number of the format
    {"f32", 32, 1, 0, {}},               // 1
    {"bf16", 16, 2, 0, {}},              // 2
    uniform("w8", 8),                    // 3
    uniform("w6", 6),                    // 4
    with_levels("w5", 5, 8, kLevelsW5),  // 5
    with_levels("w4", 4, 7, kLevelsW4),  // 6
    with_levels("w3", 3, 7, kLevelsW3),  // 7
};
constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

constexpr const FormatInfo& info_of(Format format) { return kFormats[static_cast<int>(format)]; }

// Whether it stores codes and scales; else floats.
constexpr bool is_quantized(Format format) { return info_of(format).level_bits > 0; }

// Whether its levels are a table.
constexpr bool has_table(const FormatInfo& format) { return format.levels[0] != 0; }

// What a code stands for, before its panel's scale.
constexpr int level_of(const FormatInfo& format, int code) {
  return has_table(format) ? format.levels[code] : code - (1 << (format.bits - 1));
}

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
