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

// clang-format off
enum class Format : uint32_t {
  vector, f32, bf16, w8, w6, w5, w4, w3,
  q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k, mxfp4,
  int4_g32, int4_g64, int4_g128, int4, int8_g32, int8_g64, int8_g128, int8
};
// clang-format on

// What a kept format (one that holds another scheme's codes) stores for a group of columns, with f a float16 of the
// row's panel and b a byte: the scale; f * b; half of 2^(b - 127).
enum class GroupScale : int32_t { f16, u8, i8, e8m0 };
// And besides: nothing; a minimum, which is added; a minimum of f * b; b, which is taken off a level.
enum class GroupShift : int32_t { none, f16, u8, zero };

struct FormatInfo {
  const char* name;
  int32_t bits;        // of one number, without scales
  int32_t columns;     // stored columns are a multiple of these
  int32_t level_bits;  // a code stands for an integer of so many bits, its level; 0: floats, without codes
  int32_t low;         // a code's level is the code plus this
  int8_t levels[32];   // or where these are not all 0, what they say
  int32_t group;       // of a kept format: columns that share a scale; 0: none
  GroupScale scale;
  GroupShift shift;
};

// Levels of 2^bits codes: `half` of those without the top bit, and -1 - level of the same codes with it.
template <int kHalf>
constexpr FormatInfo with_levels(const char* name, int32_t bits, int32_t level_bits, const int8_t (&half)[kHalf]) {
  FormatInfo format{name, bits, 32, level_bits, 0, {}, 0, GroupScale::f16, GroupShift::none};
  for (int i = 0; i < kHalf; ++i) {
    format.levels[i] = half[i];
    format.levels[kHalf + i] = static_cast<int8_t>(-1 - half[i]);
  }
  return format;
}
constexpr FormatInfo uniform(const char* name, int32_t bits) {
  return {name, bits, 32, bits, -(1 << (bits - 1)), {}, 0, GroupScale::f16, GroupShift::none};
}
constexpr FormatInfo floats(const char* name, int32_t bits, int32_t columns) {
  return {name, bits, columns, 0, 0, {}, 0, GroupScale::f16, GroupShift::none};
}
// Levels `low` and those after it.
constexpr FormatInfo kept(const char* name, int32_t bits, int32_t low, int32_t group, GroupScale scale,
                          GroupShift shift) {
  return {name, bits, 32, bits, low, {}, group, scale, shift};
}
// Twice the numbers of FP4, of 5 bits.
constexpr FormatInfo kMxfp4{
    "mxfp4",         4, 32, 5, 0, {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}, 32, GroupScale::e8m0,
    GroupShift::none};

// Where a normal distribution is rounded with the least squared error (Lloyd 1982, Max 1960), in integers: the numbers
// of a rotated panel are nearly normal.
constexpr int8_t kLevelsW5[] = {2, 7, 12, 17, 22, 27, 33, 39, 45, 51, 58, 66, 75, 86, 100, 121};
constexpr int8_t kLevelsW4[] = {2, 7, 12, 18, 24, 31, 40, 53};
constexpr int8_t kLevelsW3[] = {6, 20, 36, 58};

constexpr FormatInfo kFormats[] = {
    floats("vector", 32, 1),             // 0: by the number of the format
    floats("f32", 32, 1),                // 1
    floats("bf16", 16, 2),               // 2
    uniform("w8", 8),                    // 3
    uniform("w6", 6),                    // 4
    with_levels("w5", 5, 8, kLevelsW5),  // 5
    with_levels("w4", 4, 7, kLevelsW4),  // 6
    with_levels("w3", 3, 7, kLevelsW3),  // 7
    kept("q8_0", 8, -128, 32, GroupScale::f16, GroupShift::none),
    kept("q4_0", 4, -8, 32, GroupScale::f16, GroupShift::none),
    kept("q4_1", 4, 0, 32, GroupScale::f16, GroupShift::f16),
    kept("q5_0", 5, -16, 32, GroupScale::f16, GroupShift::none),
    kept("q5_1", 5, 0, 32, GroupScale::f16, GroupShift::f16),
    kept("q4_k", 4, 0, 32, GroupScale::u8, GroupShift::u8),
    kept("q5_k", 5, 0, 32, GroupScale::u8, GroupShift::u8),
    kept("q6_k", 6, -32, 16, GroupScale::i8, GroupShift::none),
    kMxfp4,
    kept("int4_g32", 4, 0, 32, GroupScale::f16, GroupShift::zero),
    kept("int4_g64", 4, 0, 64, GroupScale::f16, GroupShift::zero),
    kept("int4_g128", 4, 0, 128, GroupScale::f16, GroupShift::zero),
    kept("int4", 4, 0, 256, GroupScale::f16, GroupShift::zero),
    kept("int8_g32", 8, 0, 32, GroupScale::f16, GroupShift::zero),
    kept("int8_g64", 8, 0, 64, GroupScale::f16, GroupShift::zero),
    kept("int8_g128", 8, 0, 128, GroupScale::f16, GroupShift::zero),
    kept("int8", 8, 0, 256, GroupScale::f16, GroupShift::zero),
};
constexpr int kFormatCount = sizeof(kFormats) / sizeof(kFormats[0]);

constexpr const FormatInfo& info_of(Format format) { return kFormats[static_cast<int>(format)]; }

// Whether it stores codes and scales; else floats.
constexpr bool is_quantized(Format format) { return info_of(format).level_bits > 0; }

// Whether it holds another scheme's codes: not rotated, with scales for groups of columns.
constexpr bool is_kept(Format format) { return info_of(format).group > 0; }

// Whether its levels are a table.
constexpr bool has_table(const FormatInfo& format) { return format.levels[1] != 0; }

// What a code stands for, before its panel's scale.
constexpr int level_of(const FormatInfo& format, int code) {
  return has_table(format) ? format.levels[code] : code + format.low;
}

// Of a kept format, whose levels are multiplied as unsigned numbers: what is to be taken off these.
constexpr int zero_of(const FormatInfo& format) {
  return has_table(format) ? 1 << (format.level_bits - 1) : -format.low;
}

// Whether its groups have minima or zero points besides.
constexpr bool has_shift(const FormatInfo& format) { return format.shift != GroupShift::none; }

// What a row of a panel of `cols` columns stores besides its codes: numbers of two bytes, then bytes.
struct ScaleFields {
  int64_t halves, bytes;
};
constexpr ScaleFields scale_fields(const FormatInfo& format, int64_t cols) {
  if (format.level_bits == 0 || cols == 0) return {0, 0};
  if (format.group == 0) return {1, 0};
  const int64_t groups = (cols + format.group - 1) / format.group;
  ScaleFields fields{format.scale == GroupScale::f16 ? groups : 0, format.scale == GroupScale::f16 ? 0 : groups};
  if (format.scale == GroupScale::u8 || format.scale == GroupScale::i8) fields.halves += 1;
  if (format.shift == GroupShift::f16) fields.halves += groups;
  if (format.shift == GroupShift::u8) fields.halves += 1;
  if (format.shift == GroupShift::u8 || format.shift == GroupShift::zero) fields.bytes += groups;
  return fields;
}
constexpr int64_t scales_nbytes(const FormatInfo& format, int64_t cols) {
  const ScaleFields fields = scale_fields(format, cols);
  return fields.halves * 2 + fields.bytes;
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
