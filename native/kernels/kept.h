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

// The sums of kRows rows and kBlocks blocks over a panel.
template <int kBlocks, int kRows>
struct KeptSums {
  IntTile<kBlocks, kRows> running;
  Tile<kBlocks, kRows> groups, outliers;

  DEEPMNN_INLINE void start() {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) running.v[b][r] = splat_i32(0);
    }
    clear(groups);
  }

  // Group g of `group` columns ends before column `end`.
  template <Format kFormat>
  DEEPMNN_INLINE void end_group(int64_t g, int64_t group, int64_t end, const GroupScales* scales,
                                const QuantizedRows& rows) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F32x16 x = splat(rows.plain[r].sums[sums_of(group) + g]);
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

  // vector(v, b): the codes of quad v of the panel in block b.
  template <Format kFormat, class Vectors>
  DEEPMNN_INLINE void add_outliers(int64_t group, const GroupScales* scales, const QuantizedRows& rows,
                                   const Vectors& vector) {
    clear(outliers);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kOutliers; ++i) {
        const int64_t quad = rows.plain[r].quads[i], g = quad * 4 / group;
        const int8_t* high = rows.plain[r].outliers[i];
        DEEPMNN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          DotRun<Codec<kFormat>::kLevelBits> run;
          run.start(splat_i32(kTaken<kFormat> * (high[0] + high[1] + high[2] + high[3])));
          run.add(vector(quad, b), high);
          outliers.v[b][r] = fma(to_float(run.sum()), load(scales[b].scale[g]), outliers.v[b][r]);
        }
      }
    }
  }

  DEEPMNN_INLINE F32x16 add_to(F32x16 y, int b, int r, const QuantizedRows& rows) const {
    const float scale = rows.heads[r].scale;
    y = fma(groups.v[b][r], splat(scale), y);
    return fma(outliers.v[b][r], splat(scale * static_cast<float>(kOutlierStep)), y);
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

// Vector v of a part, v not known when this is compiled.
template <Format kFormat>
DEEPMNN_INLINE U8x64 any_vector(const uint8_t* part, int64_t v) {
  U8x64 found = Codec<kFormat>::vector(part, 0);
  with_count<0, kPartVectors - 1>(v, [&](auto count) { found = Codec<kFormat>::vector(part, count.value); });
  return found;
}

// One panel of one block, as it is stored at w, with kRows rows.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void stored_panel(const uint8_t* w, int64_t cols, int64_t group, const GroupScales& scales,
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
    sums.template end_group<kFormat>((column - 1) / group, group, column, &scales, rows);
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
    if ((column + kPartCols) % group == 0 || column + kPartCols == cols) end(column + kPartCols);
  }
  sums.template add_outliers<kFormat>(group, &scales, rows, [&](int64_t quad, int) {
    return any_vector<kFormat>(w + quad / kPartVectors * Of::kPartBytes, quad % kPartVectors);
  });
}

// One block, read as one stream.
template <Format kFormat, int kRows>
void dot_kept(const uint8_t* w, const Weight& weight, QuantizedRows rows, Tile<1, kRows>& out) {
  const FormatInfo& info = info_of(weight.format);
  clear(out);
  for (int64_t left = stored_cols(kFormat, weight.cols); left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const int64_t cols = left < kPanelCols ? left : kPanelCols;
    const uint8_t* const scales_at = w + codes_nbytes<kFormat>(cols);
    GroupScales scales;
    read_group_scales(scales_at, info, cols, scales);
    KeptSums<1, kRows> sums;
    stored_panel<kFormat>(w, cols, info.group, scales, rows, sums);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) out.v[0][r] = sums.add_to(out.v[0][r], 0, r, rows);
    w = scales_at + kBlockRows * scales_nbytes(info, cols);
  }
}

// kEndVectors vectors of an unpacked panel, from vector `first` on, with rows.
template <Format kFormat, int kBlocks, int kRows>
DEEPMNN_INLINE void add_unpacked(const Panel<kBlocks>& panel, int64_t first, const QuantizedRows& rows,
                                 IntTile<kBlocks, kRows>& acc) {
  using Run = DotRun<Codec<kFormat>::kLevelBits>;
  constexpr int kStep = kPanelStep < kEndVectors<kFormat> ? kPanelStep : kEndVectors<kFormat>;
  constexpr int kMost = Run::kMost < kStep ? Run::kMost : kStep;
  DEEPMNN_UNROLL
  for (int s = 0; s < kEndVectors<kFormat>; s += kStep) {
    U8x64 codes[kStep == 1 ? kBlocks : 1];
    if constexpr (kStep == 1) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) codes[b] = load_u8(panel.vector(first + s, b));
    }
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int8_t* a = rows.codes + r * kPanelCols + 4 * (first + s);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        DEEPMNN_UNROLL
        for (int i = 0; i < kStep; i += kMost) {
          Run run;
          run.start(acc.v[b][r]);
          DEEPMNN_UNROLL
          for (int v = i; v < i + kMost; ++v) {
            run.add(kStep == 1 ? codes[b] : load_u8(panel.vector(first + s + v, b)), a + 4 * v);
          }
          acc.v[b][r] = run.sum();
        }
      }
    }
  }
}

// One panel with the first kRows of `rows`.
template <Format kFormat, int kBlocks, int kRows>
void kept_tile(const Panel<kBlocks>& panel, int64_t cols, int64_t group, const GroupScales* scales,
               const QuantizedRows& rows, float (*to)[kBlocks][kBlockRows]) {
  KeptSums<kBlocks, kRows> sums;
  sums.start();
  constexpr int64_t kEndCols = 4 * kEndVectors<kFormat>;
  int64_t g = 0;
  for (int64_t end = kEndCols; end <= cols; end += kEndCols) {
    add_unpacked<kFormat, kBlocks, kRows>(panel, (end - kEndCols) / 4, rows, sums.running);
    if (end % group && end < cols) continue;
    sums.template end_group<kFormat>(g++, group, end, scales, rows);
  }
  sums.template add_outliers<kFormat>(group, scales, rows,
                                      [&](int64_t quad, int b) { return load_u8(panel.vector(quad, b)); });
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) store(to[r][b], sums.add_to(load(to[r][b]), b, r, rows));
  }
}

// The dot products of kBlocks blocks at w with the first n (at most kLinearPanelRows) of `rows`: a panel is unpacked
// once for all of them.
template <Format kFormat, int kBlocks>
void kept_dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, QuantizedRows rows, int64_t n,
              Sums<kBlocks>& sums) {
  const FormatInfo& info = info_of(weight.format);
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
        kept_tile<kFormat, kBlocks, count.value>(panel, cols, info.group, scales, rows.from(tiles.first(tile)),
                                                 sums.v + tiles.first(tile));
      });
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
