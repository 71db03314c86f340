// Products of kept formats: unsigned levels with plain rows, and for each group of columns a scale and, where a format
// has minima or zero points, a shift. A number is scale * (level - zero) + shift, so
//
//   y += s * (sum_g (scale_g D_g + shift_g X_g) + sum_o 128 scale_o H_o)
//
// with s the row's scale in a panel, X_g the sum of the activations of group g, D_g the integer sum of (level - zero)
// times activation, but for the high bytes of outliers, and H_o that of an outlier's quad and its high bytes. It is the
// same in the same order for all shapes of tiles, so a row's result does not depend on which other rows run with it.
#pragma once

#include "kernels/dot.h"
#include "kernels/group_scales.h"
#include "kernels/panel.h"

namespace deepmnn::DEEPMNN_NS {

// The columns of a group, where all formats that share a kernel have as many; else 0.
template <Format kFormat>
constexpr int64_t kGroupCols = info_of(kFormat).shift == GroupShift::zero ? 0 : info_of(kFormat).group;

// Vectors (4 columns) after which a group may end.
template <Format kFormat>
constexpr int kEndVectors = kGroupCols<kFormat> == 16 ? 4 : 8;

// What DotRun has taken off every level: these are signed where it multiplies signed ones.
template <Format kFormat>
constexpr int32_t kTaken = Codec<kFormat>::kOffset == 0 ? 1 << (Codec<kFormat>::kLevelBits - 1) : 0;

// What is left to take off, times the sum of the codes: that is where a group's sum starts.
template <Format kFormat>
constexpr int32_t kLeft = kTaken<kFormat> - zero_of(info_of(kFormat));

// The groups of a format: a power of two of columns, so that nothing is divided.
template <Format kFormat>
struct GroupShape {
  explicit GroupShape(const FormatInfo& info)
      : columns(kGroupCols<kFormat> ? kGroupCols<kFormat> : info.group),
        shift(__builtin_ctz(static_cast<uint32_t>(columns))),
        sums(sums_of(columns)) {}
  DEEPMNN_INLINE int64_t of(int64_t column) const { return column >> shift; }
  DEEPMNN_INLINE int64_t count(int64_t cols) const { return (cols + columns - 1) >> shift; }

  int64_t columns;
  int shift;
  int64_t sums;  // where a plain panel has theirs
};

// Where the groups' sums of kRows rows of a panel start.
template <Format kFormat, int kRows>
struct Starts {
  alignas(64) int32_t v[kRows][kMostGroups];

  DEEPMNN_INLINE Starts(const GroupShape<kFormat>& shape, const QuantizedRows& rows) {
    if constexpr (kLeft<kFormat> != 0) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float* code_sums = rows.plain[r].code_sums + shape.sums;
        if constexpr (kGroupCols<kFormat> != 0) {
          const F32x16 all = load(code_sums) * splat(static_cast<float>(kLeft<kFormat>));
          store(reinterpret_cast<float*>(v[r]), from_bits(to_int(all)));
        } else {
          for (int64_t g = 0; g < shape.of(kPanelCols); ++g) {
            v[r][g] = kLeft<kFormat> * static_cast<int32_t>(code_sums[g]);
          }
        }
      }
    }
  }
  DEEPMNN_INLINE I32x16 of(int r, int64_t g) const { return splat_i32(kLeft<kFormat> != 0 ? v[r][g] : 0); }
};

// scale_g D_g + shift_g X_g, with D in `group`. scale(b), shift(b): of group g.
template <Format kFormat, int kBlocks, int kRows, class Scale, class Shift>
DEEPMNN_INLINE void add_group(int64_t g, const GroupShape<kFormat>& shape, const QuantizedRows& rows,
                              const Tile<kBlocks, kRows>& group, const Scale& scale, const Shift& shift,
                              Tile<kBlocks, kRows>& sums) {
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    const F32x16 of_group = scale(b);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) sums.v[b][r] = fma(group.v[b][r], of_group, sums.v[b][r]);
  }
  if constexpr (has_shift(info_of(kFormat))) {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const F32x16 of_group = shift(b);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        sums.v[b][r] = fma(of_group, splat(rows.plain[r].sums[shape.sums + g]), sums.v[b][r]);
      }
    }
  }
}

// sum_o 128 scale_o H_o. vector(quad, b): the levels of a quad of the panel in block b; coarse(g, b):
// 128 times the scale of a group.
template <Format kFormat, int kBlocks, int kRows, class Vectors, class Coarse>
DEEPMNN_INLINE void add_outliers(const GroupShape<kFormat>& shape, const QuantizedRows& rows, const Vectors& vector,
                                 const Coarse& coarse, Tile<kBlocks, kRows>& sums) {
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const PlainPanel& plain = rows.plain[r];
    DEEPMNN_UNROLL
    for (int i = 0; i < kOutliers; ++i) {
      const int64_t quad = plain.quads[i], g = shape.of(4 * quad);
      const I32x16 start = splat_i32(kLeft<kFormat> ? kLeft<kFormat> * plain.outlier_sums[i] : 0);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        DotRun<Codec<kFormat>::kLevelBits> run;
        run.start(start);
        run.add(vector(quad, b), plain.outliers[i]);
        sums.v[b][r] = fma(to_float(run.sum()), coarse(g, b), sums.v[b][r]);
      }
    }
  }
}

// Vectors [kFirst, kFirst + kEndVectors) of the part at w, for rows whose codes of it begin at a.
template <Format kFormat, int kFirst, int kRows, int kCount>
DEEPMNN_INLINE void add_stored(const uint8_t* w, const int8_t* a, IntTile<1, kRows> (&acc)[kCount]) {
  using Run = DotRun<Codec<kFormat>::kLevelBits>;
  constexpr int kMost = Run::kMost < kEndVectors<kFormat> ? Run::kMost : kEndVectors<kFormat>;
  DEEPMNN_UNROLL
  for (int first = kFirst; first < kFirst + kEndVectors<kFormat>; first += kMost) {
    IntTile<1, kRows>& sums = acc[first / kMost % kCount];
    Run runs[kRows];
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) runs[r].start(sums.v[0][r]);
    DEEPMNN_UNROLL
    for (int v = first; v < first + kMost; ++v) {
      const U8x64 codes = Codec<kFormat>::vector(w, v);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) runs[r].add(codes, a + r * kPanelCols + 4 * v);
    }
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) sums.v[0][r] = runs[r].sum();
  }
}

// Vector v of a part, v not known when this is compiled: branches would often be predicted wrong.
template <Format kFormat>
DEEPMNN_INLINE U8x64 any_vector(const uint8_t* part, uint64_t v) {
  constexpr int kBits = Codec<kFormat>::kBits;
  if constexpr (kBits == 8) return load_u8(part + v * 64);
  const auto plane = [&](const uint8_t* at, unsigned bits) {
    const unsigned shared = 8 / bits;
    const I32x16 moved = shift_right(load_i32(at + v / shared * 64), static_cast<int>(v % shared * bits));
    return moved & splat_i32(((1 << bits) - 1) * 0x01010101);
  };
  I32x16 codes = plane(part, 4);
  if constexpr (kBits > 4 && kBits < 8) codes = codes + shift_left(plane(part + 256, kBits - 4), 4);
  return Codec<kFormat>::levels(bytes(codes));
}

// The sums D of the groups of a panel with kRows rows.
template <int kRows>
struct GroupSums {
  Tile<1, kRows> v[kMostGroups];
};

// Those of one block, as it is stored at w.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void sum_groups(const uint8_t* w, int64_t cols, const GroupShape<kFormat>& shape,
                               const QuantizedRows& rows, GroupSums<kRows>& sums) {
  using Of = Codec<kFormat>;
  constexpr int kCount = kRows <= kSplitSums ? 2 : 1;
  const Starts<kFormat, kRows> starts(shape, rows);
  IntTile<1, kRows> acc[kCount];
  const auto begin = [&](int64_t g) {
    DEEPMNN_UNROLL
    for (int i = 0; i < kCount; ++i) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) acc[i].v[0][r] = i == 0 ? starts.of(r, g) : splat_i32(0);
    }
  };
  const auto end = [&](int64_t g) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      sums.v[g].v[0][r] = to_float(kCount == 2 ? acc[0].v[0][r] + acc[kCount - 1].v[0][r] : acc[0].v[0][r]);
    }
  };
  for (int64_t column = 0, g = 0; column < cols; ++g) {
    begin(g);
    const int64_t stop = kGroupCols<kFormat> || column + shape.columns < cols ? column + shape.columns : cols;
    do {
      add_stored<kFormat, 0>(w, rows.codes + column, acc);
      if constexpr (kEndVectors<kFormat> < kPartVectors) {
        end(g++);
        begin(g);
        add_stored<kFormat, kEndVectors<kFormat>>(w, rows.codes + column, acc);
      }
      column += kPartCols;
      w += Of::kPartBytes;
    } while (kGroupCols<kFormat> == 0 && column < stop);
    end(g);
  }
}

// One block, read as one stream: a panel's codes, then its scales.
template <Format kFormat, int kRows>
void dot_kept(const uint8_t* w, const Weight& weight, QuantizedRows rows, Tile<1, kRows>& out) {
  const FormatInfo& info = info_of(weight.format);
  const GroupShape<kFormat> shape(info);
  clear(out);
  for (int64_t left = stored_cols(kFormat, weight.cols); left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const int64_t cols = left < kPanelCols ? left : kPanelCols, groups = shape.count(cols);
    ask_ahead(w);
    GroupSums<kRows> of_groups;
    sum_groups(w, cols, shape, rows, of_groups);
    const uint8_t* const scales_at = w + codes_nbytes<kFormat>(cols);
    const ScaleReader scales(scales_at, info_of(kFormat), groups);
    Tile<1, kRows> sums;
    clear(sums);
    for (int64_t g = 0; g < groups; ++g) {
      add_group(
          g, shape, rows, of_groups.v[g], [&](int) { return scales.scale(g); }, [&](int) { return scales.shift(g); },
          sums);
    }
    add_outliers(
        shape, rows,
        [&](uint64_t quad, int) {
          return any_vector<kFormat>(w + quad / kPartVectors * Codec<kFormat>::kPartBytes, quad % kPartVectors);
        },
        [&](int64_t g, int) { return scales.scale(g) * splat(kOutlierStep); }, sums);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) out.v[0][r] = fma(sums.v[0][r], splat(rows.heads[r].scale), out.v[0][r]);
    w = scales_at + kBlockRows * scales_nbytes(info, cols);
  }
}

// kEndVectors vectors of an unpacked panel, which begin at w, with rows whose codes begin at a.
template <Format kFormat, int kBlocks, int kRows>
DEEPMNN_INLINE void add_unpacked(const uint8_t* w, const int8_t* a, IntTile<kBlocks, kRows>& acc) {
  using Run = DotRun<Codec<kFormat>::kLevelBits>;
  constexpr int kStep = kPanelStep < kEndVectors<kFormat> ? kPanelStep : kEndVectors<kFormat>;
  constexpr int kMost = Run::kMost < kStep ? Run::kMost : kStep;
  static_assert(kStep == kPanelStep || kStep == kEndVectors<kFormat>, "they lie in whole steps, or in one");
  DEEPMNN_UNROLL
  for (int s = 0; s < kEndVectors<kFormat>; s += kStep, w += kStep * kBlocks * 64, a += 4 * kStep) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        DEEPMNN_UNROLL
        for (int first = 0; first < kStep; first += kMost) {
          Run run;
          run.start(acc.v[b][r]);
          DEEPMNN_UNROLL
          for (int v = first; v < first + kMost; ++v) {
            run.add(load_u8(w + (b * kPanelStep + v) * 64), a + r * kPanelCols + 4 * v);
          }
          acc.v[b][r] = run.sum();
        }
      }
    }
  }
}

// One panel with the first kRows of `rows`.
template <Format kFormat, int kBlocks, int kRows>
void kept_tile(const Panel<kBlocks>& panel, int64_t cols, const GroupShape<kFormat>& shape,
               const GroupScales (&scales)[kBlocks], const QuantizedRows& rows, float (*to)[kBlocks][kBlockRows]) {
  Tile<kBlocks, kRows> sums;
  clear(sums);
  const Starts<kFormat, kRows> starts(shape, rows);
  constexpr int64_t kEndCols = 4 * kEndVectors<kFormat>;
  for (int64_t column = 0, g = 0; column < cols; ++g) {
    IntTile<kBlocks, kRows> acc;
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const I32x16 start = starts.of(r, g);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) acc.v[b][r] = start;
    }
    const int64_t stop = kGroupCols<kFormat> || column + shape.columns < cols ? column + shape.columns : cols;
    do {
      add_unpacked<kFormat, kBlocks, kRows>(panel.vector(column / 4, 0), rows.codes + column, acc);
      column += kEndCols;
    } while (kGroupCols<kFormat> == 0 && column < stop);
    Tile<kBlocks, kRows> group;
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) group.v[b][r] = to_float(acc.v[b][r]);
    }
    add_group(
        g, shape, rows, group, [&](int b) { return load(scales[b].scale[g]); },
        [&](int b) { return load(scales[b].shift[g]); }, sums);
  }
  add_outliers(
      shape, rows, [&](int64_t quad, int b) { return load_u8(panel.vector(quad, b)); },
      [&](int64_t g, int b) { return load(scales[b].coarse[g]); }, sums);
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const F32x16 of_row = splat(rows.heads[r].scale);
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) store(to[r][b], fma(sums.v[b][r], of_row, load(to[r][b])));
  }
}

// The dot products of kBlocks blocks at w with the first n (at most kLinearPanelRows) of `rows`: a panel is unpacked
// once for all of them.
template <Format kFormat, int kBlocks>
void kept_dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, QuantizedRows rows, int64_t n,
              Sums<kBlocks>& sums) {
  const FormatInfo& info = info_of(weight.format);
  const GroupShape<kFormat> shape(info);
  __builtin_memset(sums.v, 0, static_cast<uint64_t>(n) * sizeof(sums.v[0]));
  Panel<kBlocks> panel;
  GroupScales scales[kBlocks];
  const uint8_t* const other = w + kBlocks * block_bytes;  // the blocks after these
  const EvenTiles<kKeptTileRows> tiles(n);
  for (int64_t left = stored_cols(kFormat, weight.cols); left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const int64_t cols = left < kPanelCols ? left : kPanelCols, nbytes = codes_nbytes<kFormat>(cols);
    unpack_codes<kFormat>(w, block_bytes, cols, panel);
    const int64_t groups = shape.count(cols);
    for (int b = 0; b < kBlocks; ++b) {
      read_group_scales(ScaleReader(w + b * block_bytes + nbytes, info_of(kFormat), groups), groups, scales[b]);
    }
    const int64_t stored = nbytes + kBlockRows * scales_nbytes(info, cols);
    w = left <= kPanelCols ? other : w + stored;
    const int64_t asked = (stored / tiles.count + 63) / 64 * 64;  // bytes of the next panel, for each tile
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      for (int64_t at = tile * asked; at < (tile + 1) * asked && at < stored; at += 64) {
        for (int b = 0; b < kBlocks; ++b) prefetch_far(w + b * block_bytes + at);
      }
      with_count<1, kKeptTileRows>(tiles.size(tile), [&](auto count) {
        kept_tile<kFormat, kBlocks, count.value>(panel, cols, shape, scales, rows.from(tiles.first(tile)),
                                                 sums.v + tiles.first(tile));
      });
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
