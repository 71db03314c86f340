// The scales of a panel of a kept format as floats, whatever they are stored as (docs/layouts.md, "Kept formats").
#pragma once

#include "kernels/kernels.h"

namespace deepmnn::DEEPMNN_NS {

constexpr int64_t kMostGroups = kPanelCols / 16;

// number = scale * (level - zero_of(format)) + shift, for each group and row of a block; `coarse` is kOutlierStep *
// scale.
struct GroupScales {
  alignas(64) float scale[kMostGroups][kBlockRows];
  alignas(64) float coarse[kMostGroups][kBlockRows];
  alignas(64) float shift[kMostGroups][kBlockRows];
};

// 16 bytes as floats.
DEEPMNN_INLINE F32x16 load_bytes(const uint8_t* p, bool is_signed) {
  const I32x16 wide = widen_i8(reinterpret_cast<const int8_t*>(p));
  return to_float(is_signed ? wide : wide & splat_i32(255));
}

// Half of 2^(byte - 127), for 16 bytes. The byte 0 has a number below the normal ones.
DEEPMNN_INLINE F32x16 load_e8m0(const uint8_t* p) {
  const I32x16 byte = widen_i8(reinterpret_cast<const int8_t*>(p)) & splat_i32(255);
  return from_bits(max(shift_left(byte, 23), splat_i32(0x00400000))) * splat(0.5f);
}

// What follows the codes of a panel, for 16 rows. Inlined with a format that is known when this is compiled, its
// conditions are gone.
struct ScaleReader {
  const FormatInfo& format;
  const uint8_t *scales, *shifts;
  F32x16 scale_factor, shift_factor;

  DEEPMNN_INLINE ScaleReader(const uint8_t* at, const FormatInfo& info, int64_t groups)
      : format(info), scale_factor(splat(1.0f)), shift_factor(splat(1.0f)) {
    if (format.scale == GroupScale::u8 || format.scale == GroupScale::i8) scale_factor = load_f16(take(at, 2));
    if (format.shift == GroupShift::u8) shift_factor = load_f16(take(at, 2));
    scales = take(at, groups * (format.scale == GroupScale::f16 ? 2 : 1));
    shifts = at;
  }

  DEEPMNN_INLINE F32x16 scale(int64_t g) const {
    if (format.scale == GroupScale::f16) return load_f16(scales + g * 2 * kBlockRows);
    const uint8_t* at = scales + g * kBlockRows;
    return format.scale == GroupScale::e8m0 ? load_e8m0(at)
                                            : load_bytes(at, format.scale == GroupScale::i8) * scale_factor;
  }
  // What is added to a level.
  DEEPMNN_INLINE F32x16 low(int64_t g) const {
    if (format.shift != GroupShift::zero) return splat(static_cast<float>(format.low));
    return splat(0.0f) - load_bytes(shifts + g * kBlockRows, false);
  }
  DEEPMNN_INLINE F32x16 minimum(int64_t g) const {
    if (format.shift == GroupShift::f16) return load_f16(shifts + g * 2 * kBlockRows);
    if (format.shift == GroupShift::u8) return load_bytes(shifts + g * kBlockRows, false) * shift_factor;
    return splat(0.0f);
  }
  // What both are together, of a format that has_shift.
  DEEPMNN_INLINE F32x16 shift(int64_t g) const {
    return format.shift == GroupShift::zero ? low(g) * scale(g) : minimum(g);
  }

 private:
  static const uint8_t* take(const uint8_t*& at, int64_t nbytes) {
    const uint8_t* taken = at;
    at += nbytes * kBlockRows;
    return taken;
  }
};

DEEPMNN_INLINE void read_group_scales(const ScaleReader& reader, int64_t groups, GroupScales& out) {
  for (int64_t g = 0; g < groups; ++g) {
    const F32x16 scale = reader.scale(g);
    store(out.scale[g], scale);
    store(out.coarse[g], scale * splat(kOutlierStep));
    if (has_shift(reader.format)) store(out.shift[g], reader.shift(g));
  }
}

}  // namespace deepmnn::DEEPMNN_NS
