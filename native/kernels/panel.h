// Quantised matrix products for more rows than dot.h takes: a few blocks side by side, panel by panel. One tile of rows
// reads a panel as it is stored; the first of more (without kStoredPanels, a pass of its own) unpacks it into bytes
// that stay in the first-level cache while all of them pass. Between panels the running sums wait in memory. A panel's
// sum is one of integers and panels are added up in the order of the columns, as in dot.h: every way gives the same
// bits.
#pragma once

#include "kernels/dot.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

// Bytes of a vector (4 columns) of a block as it is stored.
template <class Step>
constexpr int kVectorBytes = 4 * 64 / Step::kColumns;

// Where things lie in a panel of a block: codes, w4's multipliers, scales.
template <class Step>
struct PanelLayout {
  int64_t cols;     // with those of padding
  int group_shift;  // log2 of group_size

  int64_t codes_nbytes() const { return cols / 4 * kVectorBytes<Step>; }
  int64_t scales() const { return codes_nbytes() + (Step::kMultiplied ? cols >> group_shift : 0) * kBlockRows; }
  int64_t nbytes() const { return scales() + 2 * kBlockRows; }
};

// Walks through the next panel's codes and asks for them while a tile computes: for every line (of kEvery; 0: none)
// that the tile reads of this panel, a few between any two steps, because memory takes only so many requests at once.
// They go to the second-level cache (kFar) where an unpacked panel fills the first.
template <int kBlocks, int kEvery, bool kFar>
struct Ahead {
  const uint8_t* w;  // of the first block
  int64_t block_bytes;

  // Step `s` of kSteps that read kBytes of each block.
  template <int kBytes, int kSteps>
  DEEPMNN_INLINE void fetch(int s) {
    if constexpr (kEvery > 0) {
      constexpr int kAll = kBytes / 64 / kEvery * kBlocks;
      DEEPMNN_UNROLL
      for (int i = kAll * s / kSteps; i < kAll * (s + 1) / kSteps; ++i) {
        const uint8_t* at = w + i / kBlocks * 64 + i % kBlocks * block_bytes;
        kFar ? prefetch_far(at) : prefetch(at);
      }
      if (s == kSteps - 1) w += kBytes / kEvery;
    }
  }
};

template <int kBlocks>
struct Panel {
  // Vector v (4 columns) of block b: ((v / kPanelStep) * kBlocks + b) * kPanelStep + v % kPanelStep. With kStoredPanels
  // codes of w4 are multiplied and have the offset of w8.
  alignas(64) uint8_t codes[kBlocks * kPanelCols * kBlockRows];
  alignas(64) float scales[kBlocks][kBlockRows];
  Multipliers multipliers[kPanelCols / kPartCols][kBlocks];  // of each group

  DEEPMNN_INLINE uint8_t* vector(int64_t v, int b) {
    return codes + (((v / kPanelStep) * kBlocks + b) * kPanelStep + v % kPanelStep) * 64;
  }

  // Adds its codes times those of kRows rows. A loop, because the cache of decoded instructions is small and the tiles
  // of a few rows are all different code.
  template <class Step, int kRows, class Asks>
  DEEPMNN_INLINE void add(const PanelLayout<Step>& layout, const QuantizedRows& rows, Asks& ahead,
                          IntTile<kBlocks, kRows>& acc) const {
    constexpr int kSteps = kStoredPanels ? 4 : 1, kVectors = kSteps * kPanelStep;
    static_assert(kStoredPanels || kVectors * 4 == kPartCols);
    const uint8_t* w = codes;
    for (int64_t column = 0; column < layout.cols; column += 4 * kVectors, w += kVectors * kBlocks * 64) {
      DEEPMNN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        ahead.template fetch<kVectors * kVectorBytes<Step>, kSteps>(s);
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const int8_t* a = rows.codes + r * kPanelCols + column + 4 * kPanelStep * s;
          DEEPMNN_UNROLL
          for (int b = 0; b < kBlocks; ++b) {
            const uint8_t* at = w + (s * kBlocks + b) * kPanelStep * 64;
            if constexpr (kStoredPanels) {
              acc.v[b][r] = dot_codes(acc.v[b][r], load_u8(at), a);
            } else if constexpr (Step::kMultiplied) {
              acc.v[b][r] = panel_w4(acc.v[b][r], at, a, rows.heads[r].part_sums[column / kPartCols],
                                     multipliers[column >> layout.group_shift][b]);
            } else {
              acc.v[b][r] = panel_w8(acc.v[b][r], at, a);
            }
          }
        }
      }
    }
  }
  template <class Step>
  DEEPMNN_INLINE F32x16 scale(const PanelLayout<Step>&, int b) const {
    return load(scales[b]);
  }
};

template <class Step, int kBlocks>
DEEPMNN_INLINE void fill_multipliers(const uint8_t* w, int64_t block_bytes, const PanelLayout<Step>& layout,
                                     Panel<kBlocks>& panel) {
  if constexpr (!Step::kMultiplied) return;
  for (int64_t g = 0; g < layout.cols >> layout.group_shift; ++g) {
    const uint8_t* at = w + layout.codes_nbytes() + g * kBlockRows;
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      panel.multipliers[g][b] = load_multipliers(reinterpret_cast<const int8_t*>(at + b * block_bytes));
    }
  }
}

// The same interface over a panel as it is stored. Codes are read anew for each four columns, and multipliers lie in
// memory: registers hold the sums. With kUnpack the codes are left in `panel` for the tiles to come.
template <int kBlocks, bool kUnpack>
struct StoredPanel {
  const uint8_t* w;  // the first block
  int64_t block_bytes;
  Panel<kBlocks>& panel;

  template <class Step, int kRows, class Asks>
  DEEPMNN_INLINE void add(const PanelLayout<Step>& layout, const QuantizedRows& rows, Asks& ahead,
                          IntTile<kBlocks, kRows>& acc) const {
    constexpr int kSteps = kPartCols / 4;
    const uint8_t* at = w;
    const int8_t* a = rows.codes;
    for (int64_t part = 0; part < layout.cols / kPartCols; ++part, at += kSteps * kVectorBytes<Step>, a += kPartCols) {
      const Multipliers* of = panel.multipliers[part * kPartCols >> layout.group_shift];
      DEEPMNN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        ahead.template fetch<kSteps * kVectorBytes<Step>, kSteps>(s);
        __asm__ volatile("" : : : "memory");
        U8x64 codes[kBlocks];
        DEEPMNN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          codes[b] = Step::vector(at + b * block_bytes, s, of[b]);
          if constexpr (kUnpack) store_u8(panel.vector(part * kSteps + s, b), codes[b]);
        }
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          DEEPMNN_UNROLL
          for (int b = 0; b < kBlocks; ++b) {
            acc.v[b][r] = dot_codes(acc.v[b][r], codes[b], a + r * kPanelCols + 4 * s);
          }
        }
      }
    }
  }
  template <class Step>
  DEEPMNN_INLINE F32x16 scale(const PanelLayout<Step>& layout, int b) const {
    const F32x16 scale = panel_scale<Step>(w + b * block_bytes + layout.scales());
    if constexpr (kUnpack) store(panel.scales[b], scale);
    return scale;
  }
};

// Sums of the rows that pass: [kLinearPanelRows][kBlocks] vectors.
template <int kBlocks>
struct Sums {
  alignas(64) float v[kLinearPanelRows][kBlocks][kBlockRows];
};

DEEPMNN_INLINE void unpack(StepW4, const uint8_t* w, uint8_t* first, uint8_t* second) {
  const U8x64 packed = load_u8(w);
  store_u8(first, low_nibbles(packed));
  store_u8(second, high_nibbles(packed));
}
DEEPMNN_INLINE void unpack(StepW8, const uint8_t* w, uint8_t* first, uint8_t* second) {
  store_u8(first, load_u8(w));
  store_u8(second, load_u8(w + 64));
}

// A panel of the blocks at w, where none is read as it is stored. The blocks take turns, so that their reads overlap.
template <class Step, int kBlocks>
void fill_panel(const uint8_t* w, int64_t block_bytes, const PanelLayout<Step>& layout, Panel<kBlocks>& panel) {
  const uint8_t* at = w;
  for (int64_t v = 0; v < layout.cols / 4; v += 2, at += 2 * kVectorBytes<Step>) {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) unpack(Step{}, at + b * block_bytes, panel.vector(v, b), panel.vector(v + 1, b));
  }
  fill_multipliers(w, block_bytes, layout, panel);
  for (int b = 0; b < kBlocks; ++b) store(panel.scales[b], panel_scale<Step>(w + b * block_bytes + layout.scales()));
}

// A panel's integer sums times the weights' scale. Where fma rounds once, sums start at the bits of 1.5 · 2^23 and are
// floats as they stand, of that number plus the sum (below 2^22 in size); it is taken away again by the multiply-add
// that multiplies, exactly: a scale has 11 bits. One instruction instead of two, and the same bits.
constexpr int32_t kSumStart = kFusedFma ? 0x4b400000 : 0;

DEEPMNN_INLINE F32x16 scaled_sum(I32x16 sum, F32x16 scale) {
  return kFusedFma ? fma(from_bits(sum), scale, scale * splat(-12582912.0f)) : to_float(sum) * scale;
}

// One panel with the first kRows of `rows`: exact int32 sums times the weights' scale, then one multiply-add with the
// activations'.
template <class Step, int kBlocks, int kRows, class Source, class Asks>
void panel_tile(const Source& source, const PanelLayout<Step>& layout, const QuantizedRows& rows, Asks ahead,
                float (*sums)[kBlocks][kBlockRows]) {
  IntTile<kBlocks, kRows> acc;
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const I32x16 start = splat_i32(kSumStart - kW8Bias * rows.heads[r].sum);
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) acc.v[b][r] = start;
  }
  source.template add<Step, kRows>(layout, rows, ahead, acc);
  F32x16 scale[kBlocks];
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) scale[b] = source.scale(layout, b);
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const F32x16 of_row = splat(rows.heads[r].scale);
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      store(sums[r][b], fma(scaled_sum(acc.v[b][r], scale[b]), of_row, load(sums[r][b])));
    }
  }
}

// Rows are dealt out evenly, so a tile has at least these.
constexpr int kLeastTileRows = kStreamRows + 1 < (kPanelTileRows + 1) / 2 ? kStreamRows + 1 : (kPanelTileRows + 1) / 2;

// The dot products of kBlocks blocks at w with the first n (at most kLinearPanelRows) of `rows`.
template <class Step, int kBlocks>
void panel_dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, QuantizedRows rows, int64_t n,
               Sums<kBlocks>& sums) {
  __builtin_memset(sums.v, 0, static_cast<uint64_t>(n) * sizeof(sums.v[0]));
  Panel<kBlocks> panel;
  const int64_t all = stored_cols(weight.format, weight.cols, weight.group_size);
  const int group_shift = __builtin_ctz(static_cast<uint32_t>(weight.group_size));
  const uint8_t* const other = w + kBlocks * block_bytes;  // the blocks after these
  const EvenTiles<kPanelTileRows> tiles(n);
  for (int64_t left = all; left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const PanelLayout<Step> layout{left < kPanelCols ? left : kPanelCols, group_shift};
    const uint8_t *const at = w, *const next = left <= kPanelCols ? other : w + layout.nbytes();
    w = next;
    const int64_t half = layout.codes_nbytes() / 2;
    const auto run = [&](int64_t tile, const auto& source, const auto& ahead) {
      const QuantizedRows tile_rows = rows.from(tiles.first(tile));
      float(*const to)[kBlocks][kBlockRows] = sums.v + tiles.first(tile);
      with_count<kLeastTileRows, kPanelTileRows>(tiles.size(tile), [&](auto count) {
        panel_tile<Step, kBlocks, count.value>(source, layout, tile_rows, ahead, to);
      });
    };
    if constexpr (kStoredPanels) {
      fill_multipliers(at, block_bytes, layout, panel);
      if (tiles.count == 1) {
        run(0, StoredPanel<kBlocks, false>{at, block_bytes, panel}, Ahead<kBlocks, 1, false>{next, block_bytes});
        continue;
      }
      // It waits for lines itself: more requests would be in its way.
      run(0, StoredPanel<kBlocks, true>{at, block_bytes, panel}, Ahead<kBlocks, 0, true>{next, 0});
      if (tiles.count == 2) {
        run(1, panel, Ahead<kBlocks, 1, true>{next, block_bytes});
        continue;
      }
      for (int64_t i = 0; i < 2; ++i) run(1 + i, panel, Ahead<kBlocks, 2, true>{next + i * half, block_bytes});
      for (int64_t tile = 3; tile < tiles.count; ++tile) run(tile, panel, Ahead<kBlocks, 0, true>{next, 0});
    } else {
      fill_panel(at, block_bytes, layout, panel);
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        run(tile, panel, Ahead<kBlocks, 2, true>{next + tile % 2 * half, block_bytes});
      }
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
