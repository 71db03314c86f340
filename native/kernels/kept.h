// Products of kept formats: unsigned codes with plain rows, and for each group of columns a scale and a shift. A
// number is scale * code + shift, so
//
//   y = s * (sum_g scale_g (U_g - U_{g-1}) + shift_g X_g + 128 * sum_o scale_o H_o)
//
// with s the row's scale in a panel, U_g the integer sum of codes and activations up to the end of group g, X_g the sum
// of the activations of group g, and H_o what the high bytes of an outlier add. It is the same in the same order for
// all shapes of tiles, so a row's result does not depend on which other rows run with it.
#pragma once

#include "kernels/dot.h"
#include "kernels/group_scales.h"
#include "kernels/panel.h"

namespace deepmnn::DEEPMNN_NS {

// Vectors (4 columns) after which a group may end, in all formats that share these codes.
template <Format kFormat>
constexpr int kEndVectors = info_of(kFormat).group == 16 ? 4 : 8;

// What DotRun has taken off every code: these are signed where it multiplies signed ones.
template <Format kFormat>
constexpr int32_t kTaken = Codec<kFormat>::kOffset == 0 ? 1 << (Codec<kFormat>::kLevelBits - 1) : 0;

// The groups of a format: a power of two of columns, so that nothing is divided.
struct GroupShape {
  explicit GroupShape(const FormatInfo& info)
      : columns(info.group), shift(__builtin_ctz(static_cast<uint32_t>(info.group))), sums(sums_of(info.group)) {}
  DEEPMNN_INLINE bool end_at(int64_t column) const { return (column & (columns - 1)) == 0; }
  DEEPMNN_INLINE int64_t of(int64_t column) const { return column >> shift; }

  int64_t columns;
  int shift;
  int64_t sums;  // where a plain panel has theirs
};

// Where the sums of a row over all panels are: in a tile, or in memory.
template <int kRows>
struct RowOf {
  Tile<1, kRows>& tile;
  int row;
  DEEPMNN_INLINE F32x16 operator()(int) const { return tile.v[0][row]; }
  DEEPMNN_INLINE void operator()(int, F32x16 sum) const { tile.v[0][row] = sum; }
};
template <int kBlocks>
struct RowAt {
  float (*at)[kBlockRows];
  DEEPMNN_INLINE F32x16 operator()(int b) const { return load(at[b]); }
  DEEPMNN_INLINE void operator()(int b, F32x16 sum) const { store(at[b], sum); }
};

// The sums of kRows rows and kBlocks blocks over a panel.
template <int kBlocks, int kRows>
struct KeptSums {
  IntTile<kBlocks, kRows> running;
  Tile<kBlocks, kRows> groups;

  DEEPMNN_INLINE void start() {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) running.v[b][r] = splat_i32(0);
    }
    clear(groups);
  }

  // The group before column `end` ends.
  template <Format kFormat>
  DEEPMNN_INLINE void end_group(int64_t end, const GroupShape& shape, const GroupScales* scales,
                                const QuantizedRows& rows) {
    const int64_t g = shape.of(end - 1);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F32x16 x = splat(rows.plain[r].sums[shape.sums + g]);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        I32x16 sum = running.v[b][r];
        if constexpr (kTaken<kFormat> != 0) {
          sum = sum + splat_i32(kTaken<kFormat> * rows.plain[r].codes_until[(end - 1) / 16]);
        }
        F32x16& total = groups.v[b][r];
        total = fma(to_float(sum), load(scales[b].step[g]), total);
        total = fma(load(scales[b].shift[g]), x, total);
      }
    }
  }

  // Adds row r of the panel to y(b). vector(quad, b): the codes of a quad of the panel in block b.
  template <Format kFormat, class Vectors, class Sum>
  DEEPMNN_INLINE void add_row(int r, const GroupShape& shape, const GroupScales* scales, const QuantizedRows& rows,
                              const Vectors& vector, const Sum& y) const {
    const PlainPanel& plain = rows.plain[r];
    F32x16 outliers[kBlocks];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) outliers[b] = splat(0.0f);
    DEEPMNN_UNROLL
    for (int i = 0; i < kOutliers; ++i) {
      const int64_t quad = plain.quads[i], g = shape.of(4 * quad);
      const int8_t* high = plain.outliers[i];
      const I32x16 start = splat_i32(kTaken<kFormat> ? kTaken<kFormat> * (high[0] + high[1] + high[2] + high[3]) : 0);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        DotRun<Codec<kFormat>::kLevelBits> run;
        run.start(start);
        run.add(vector(quad, b), high);
        outliers[b] = fma(to_float(run.sum()), load(scales[b].scale[g]), outliers[b]);
      }
    }
    const F32x16 fine = splat(rows.heads[r].scale);
    const F32x16 coarse = splat(rows.heads[r].scale * static_cast<float>(kOutlierStep));
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) y(b, fma(outliers[b], coarse, fma(groups.v[b][r], fine, y(b))));
  }
};

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
DEEPMNN_INLINE U8x64 any_vector(const uint8_t* part, int64_t v) {
  constexpr int kBits = Codec<kFormat>::kBits;
  if constexpr (kBits == 8) return load_u8(part + v * 64);
  const auto plane = [&](const uint8_t* at, int bits) {
    const int64_t shared = 8 / bits;
    const I32x16 bytes = shift_right(load_i32(at + v / shared * 64), static_cast<int>(v % shared) * bits);
    return bytes & splat_i32(((1 << bits) - 1) * 0x01010101);
  };
  I32x16 codes = plane(part, 4);
  if constexpr (kBits > 4 && kBits < 8) codes = codes + shift_left(plane(part + 256, kBits - 4), 4);
  alignas(64) uint8_t bytes[64];
  store(reinterpret_cast<float*>(bytes), from_bits(codes));
  return Codec<kFormat>::levels(load_u8(bytes));
}

// One panel of one block, as it is stored at w, with kRows rows.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void stored_panel(const uint8_t* w, int64_t cols, const GroupShape& shape, const GroupScales& scales,
                                 const QuantizedRows& rows, KeptSums<1, kRows>& sums) {
  using Of = Codec<kFormat>;
  constexpr int kCount = kRows <= kSplitSums ? 2 : 1;
  IntTile<1, kRows> acc[kCount];
  DEEPMNN_UNROLL
  for (int i = 0; i < kCount; ++i) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) acc[i].v[0][r] = splat_i32(0);
  }
  sums.start();
  const auto end = [&](int64_t column) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      sums.running.v[0][r] = kCount == 2 ? acc[0].v[0][r] + acc[kCount - 1].v[0][r] : acc[0].v[0][r];
    }
    sums.template end_group<kFormat>(column, shape, &scales, rows);
  };
  const uint8_t* at = w;
  for (int64_t column = 0; column < cols; column += kPartCols, at += Of::kPartBytes) {
    DEEPMNN_UNROLL
    for (int line = 0; line < Of::kPartBytes; line += 64) prefetch(at + kPrefetch + line);
    add_stored<kFormat, 0>(at, rows.codes + column, acc);
    if constexpr (kEndVectors<kFormat> < kPartVectors) {
      end(column + kPartCols / 2);
      add_stored<kFormat, kEndVectors<kFormat>>(at, rows.codes + column, acc);
    }
    if (shape.end_at(column + kPartCols) || column + kPartCols == cols) end(column + kPartCols);
  }
}

// One block, read as one stream.
template <Format kFormat, int kRows>
void dot_kept(const uint8_t* w, const Weight& weight, QuantizedRows rows, Tile<1, kRows>& out) {
  const FormatInfo& info = info_of(weight.format);
  const GroupShape shape(info);
  clear(out);
  for (int64_t left = stored_cols(kFormat, weight.cols); left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const int64_t cols = left < kPanelCols ? left : kPanelCols;
    const uint8_t* const scales_at = w + codes_nbytes<kFormat>(cols);
    GroupScales scales;
    read_group_scales(scales_at, info, cols, scales);
    KeptSums<1, kRows> sums;
    stored_panel<kFormat>(w, cols, shape, scales, rows, sums);
    const auto vector = [&](int64_t quad, int) {
      return any_vector<kFormat>(w + quad / kPartVectors * Codec<kFormat>::kPartBytes, quad % kPartVectors);
    };
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r)
      sums.template add_row<kFormat>(r, shape, &scales, rows, vector, RowOf<kRows>{out, r});
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
void kept_tile(const Panel<kBlocks>& panel, int64_t cols, const GroupShape& shape, const GroupScales* scales,
               const QuantizedRows& rows, float (*to)[kBlocks][kBlockRows]) {
  KeptSums<kBlocks, kRows> sums;
  sums.start();
  constexpr int64_t kEndCols = 4 * kEndVectors<kFormat>;
  const auto add = [&](int64_t column) {
    add_unpacked<kFormat, kBlocks, kRows>(panel.vector(column / 4, 0), rows.codes + column, sums.running);
  };
  if (shape.columns == kEndCols) {  // a loop of its own: with a condition in it, GCC copies all accumulators
    for (int64_t end = kEndCols; end <= cols; end += kEndCols) {
      add(end - kEndCols);
      sums.template end_group<kFormat>(end, shape, scales, rows);
    }
  } else {
    for (int64_t first = 0; first < cols; first += shape.columns) {
      const int64_t end = first + shape.columns < cols ? first + shape.columns : cols;
      for (int64_t column = first; column < end; column += kEndCols) add(column);
      sums.template end_group<kFormat>(end, shape, scales, rows);
    }
  }
  const auto vector = [&](int64_t quad, int b) { return load_u8(panel.vector(quad, b)); };
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    sums.template add_row<kFormat>(r, shape, scales, rows, vector, RowAt<kBlocks>{to[r]});
  }
}

// The dot products of kBlocks blocks at w with the first n (at most kLinearPanelRows) of `rows`: a panel is unpacked
// once for all of them.
template <Format kFormat, int kBlocks>
void kept_dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, QuantizedRows rows, int64_t n,
              Sums<kBlocks>& sums) {
  const FormatInfo& info = info_of(weight.format);
  const GroupShape shape(info);
  __builtin_memset(sums.v, 0, static_cast<uint64_t>(n) * sizeof(sums.v[0]));
  Panel<kBlocks> panel;
  GroupScales scales[kBlocks];
  const EvenTiles<kKeptTileRows> tiles(n);
  for (int64_t left = stored_cols(kFormat, weight.cols); left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const int64_t cols = left < kPanelCols ? left : kPanelCols, nbytes = codes_nbytes<kFormat>(cols);
    unpack_codes<kFormat>(w, block_bytes, cols, panel);
    for (int b = 0; b < kBlocks; ++b) read_group_scales(w + b * block_bytes + nbytes, info, cols, scales[b]);
    w += nbytes + kBlockRows * scales_nbytes(info, cols);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      with_count<1, kKeptTileRows>(tiles.size(tile), [&](auto count) {
        kept_tile<kFormat, kBlocks, count.value>(panel, cols, shape, scales, rows.from(tiles.first(tile)),
                                                 sums.v + tiles.first(tile));
      });
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
