// Quantised matrix products for more rows than dot.h takes: a few blocks side by side, by panels of kPanelCols columns.
// One or two tiles of rows read a panel as it is stored; the first of more (without kStoredPanels, a pass of its own)
// unpacks it into bytes that stay in the first-level cache while all of them pass. Between panels the running sums wait
// in memory. They are added up group by group in the order of the columns, as in dot.h: every way gives the same bits.
#pragma once

#include "kernels/dot.h"

namespace deepmnn::DEEPMNN_NS {

// Bytes of a vector (4 columns) of a block as it is stored.
template <class Step>
constexpr int kVectorBytes = 4 * 64 / Step::kColumns;

// Bytes of one group of a block, its 32 bytes of scales at the end.
template <class Step>
constexpr int64_t group_nbytes(int64_t group_size) {
  return group_size / 4 * kVectorBytes<Step> + 2 * kBlockRows;
}

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
  // Vector v (4 columns) of block b: ((v / kPanelStep) * kBlocks + b) * kPanelStep + v % kPanelStep.
  alignas(64) uint8_t codes[kBlocks * kPanelCols * kBlockRows];
  alignas(64) float scales[kPanelCols / 32][kBlocks][kBlockRows];

  DEEPMNN_INLINE uint8_t* vector(int64_t v, int b) {
    return codes + (((v / kPanelStep) * kBlocks + b) * kPanelStep + v % kPanelStep) * 64;
  }

  // Adds group g times the codes of kRows rows. A loop, because the cache of decoded instructions is small and the
  // tiles of a few rows are all different code.
  template <class Step, int kGroup, int kRows, class Asks>
  DEEPMNN_INLINE void add(int64_t g, const PanelRow* rows, int64_t column, Asks& ahead,
                          IntTile<kBlocks, kRows>& acc) const {
    constexpr int kAll = kGroup / 4 / kPanelStep, kSteps = kAll < 4 ? kAll : 4, kVectors = kSteps * kPanelStep;
    const uint8_t* w = codes + g * (kGroup / 4 * kBlocks * 64);
    for (const int64_t end = column + kGroup; column < end; column += 4 * kVectors, w += kVectors * kBlocks * 64) {
      DEEPMNN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        ahead.template fetch<kVectors * kVectorBytes<Step>, kSteps>(s);
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          DEEPMNN_UNROLL
          for (int b = 0; b < kBlocks; ++b) {
            acc.v[b][r] = Step::panel(acc.v[b][r], w + (s * kBlocks + b) * kPanelStep * 64,
                                      rows[r].codes + column + 4 * kPanelStep * s);
          }
        }
      }
    }
  }
  DEEPMNN_INLINE F32x16 scale(int64_t g, int b) const { return load(scales[g][b]); }
};

// The same interface over a panel as it is stored. Codes are read anew for each four columns: registers hold the sums.
// With kUnpack they are left in `panel` for the tiles to come.
template <class Step, int kGroup, int kBlocks, bool kUnpack>
struct StoredPanel {
  static constexpr int64_t kBytes = group_nbytes<Step>(kGroup);
  const uint8_t* w;  // the first block
  int64_t block_bytes;
  Panel<kBlocks>& panel;

  template <class, int, int kRows, class Asks>
  DEEPMNN_INLINE void add(int64_t g, const PanelRow* rows, int64_t column, Asks& ahead,
                          IntTile<kBlocks, kRows>& acc) const {
    constexpr int kSteps = kGroup / 4;
    const uint8_t* at = w + g * kBytes;
    DEEPMNN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      ahead.template fetch<kSteps * kVectorBytes<Step>, kSteps>(s);
      __asm__ volatile("" : : : "memory");
      U8x64 codes[kBlocks];
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        codes[b] = Step::vector(at + b * block_bytes, s);
        if constexpr (kUnpack) store_u8(panel.vector(g * kGroup / 4 + s, b), codes[b]);
      }
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        DEEPMNN_UNROLL
        for (int b = 0; b < kBlocks; ++b)
          acc.v[b][r] = dot_codes(acc.v[b][r], codes[b], rows[r].codes + column + 4 * s);
      }
    }
  }
  DEEPMNN_INLINE F32x16 scale(int64_t g, int b) const {
    const F32x16 scale = load_f16(w + b * block_bytes + (g + 1) * kBytes - 2 * kBlockRows);
    if constexpr (kUnpack) store(panel.scales[g][b], scale);
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

// Groups [0, groups) of the blocks at w. The blocks take turns, so that their reads overlap.
template <class Step, int kBlocks>
void fill_panel(const uint8_t* w, int64_t block_bytes, int64_t group_size, int64_t groups, Panel<kBlocks>& panel) {
  int64_t v = 0;
  for (int64_t g = 0; g < groups; ++g) {
    for (const int64_t end = v + group_size / 4; v < end; v += 2, w += 2 * kVectorBytes<Step>) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) unpack(Step{}, w + b * block_bytes, panel.vector(v, b), panel.vector(v + 1, b));
    }
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) store(panel.scales[g][b], load_f16(w + b * block_bytes));
    w += 2 * kBlockRows;
  }
}

// A group's integer sums times the weights' scale. Where fma rounds once, sums start at the bits of 1.5 · 2^23 and are
// floats as they stand, of that number plus the sum (below 2^22 in size); it is taken away again by the multiply-add
// that multiplies, exactly: a scale has 11 bits. One instruction instead of two, and the same bits.
constexpr int32_t kSumStart = kFusedFma ? 0x4b400000 : 0;

DEEPMNN_INLINE F32x16 scaled_sum(I32x16 sum, F32x16 scale) {
  return kFusedFma ? fma(from_bits(sum), scale, scale * splat(-12582912.0f)) : to_float(sum) * scale;
}

// The groups of one panel with the first kRows of `rows`: exact int32 sums of each group times the weights' scale,
// then one multiply-add with the activations'.
template <class Step, int kGroup, int kBlocks, int kRows, class Source, class Asks>
void panel_tile(const Source& source, int64_t groups, const QuantizedRows& rows, Asks ahead,
                float (*sums)[kBlocks][kBlockRows]) {
  PanelRow at[kRows];
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) at[r] = panel_row<kGroup>(rows, r);
  int64_t column = 0;
  for (int64_t g = 0; g < groups; ++g) {
    __asm__ volatile("" : : : "memory");  // the sums stay in memory: registers are for the accumulators
    IntTile<kBlocks, kRows> acc;
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const I32x16 start = splat_i32(kSumStart - Step::kBias * at[r].sums[g]);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) acc.v[b][r] = start;
    }
    source.template add<Step, kGroup, kRows>(g, at, column, ahead, acc);
    column += kGroup;
    F32x16 scale[kBlocks];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) scale[b] = source.scale(g, b);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const F32x16 of_row = splat(at[r].scales[g]);
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        store(sums[r][b], fma(scaled_sum(acc.v[b][r], scale[b]), of_row, load(sums[r][b])));
      }
    }
  }
}

// Rows are dealt out evenly, so a tile has at least these.
constexpr int kLeastTileRows = kStreamRows + 1 < (kPanelTileRows + 1) / 2 ? kStreamRows + 1 : (kPanelTileRows + 1) / 2;

// The tile of exactly n rows (kLeastTileRows .. kRows).
template <class Step, int kGroup, int kBlocks, int kRows, class Source, class Asks>
void run_panel_tile(int64_t n, const Source& source, int64_t groups, const QuantizedRows& rows, const Asks& ahead,
                    float (*sums)[kBlocks][kBlockRows]) {
  if constexpr (kRows > kLeastTileRows) {
    if (n < kRows) {
      return run_panel_tile<Step, kGroup, kBlocks, kRows - 1>(n, source, groups, rows, ahead, sums);
    }
  }
  panel_tile<Step, kGroup, kBlocks, kRows>(source, groups, rows, ahead, sums);
}

// The dot products of kBlocks blocks at w with the first n (at most kLinearPanelRows) of `rows`.
template <class Step, int kGroup, int kBlocks>
void panel_dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, const QuantizedRows& rows, int64_t n,
               Sums<kBlocks>& sums) {
  __builtin_memset(sums.v, 0, static_cast<uint64_t>(n) * sizeof(sums.v[0]));
  Panel<kBlocks> panel;
  constexpr int64_t most = kPanelCols / kGroup, kBytes = group_nbytes<Step>(kGroup);
  const int64_t all = (weight.cols + kGroup - 1) / kGroup;
  // A division takes as long as a third of a group: rows are dealt out once.
  const int64_t tiles = (n + kPanelTileRows - 1) / kPanelTileRows, least = n / tiles, larger = n % tiles;
  for (int64_t g = 0; g < all; g += most) {
    const int64_t groups = all - g < most ? all - g : most;
    const QuantizedRows here = rows.from_panel(g / most);
    const uint8_t* at = w + g * kBytes;
    const uint8_t* next = g + most >= all ? w + kBlocks * block_bytes : at + most * kBytes;
    const int64_t half = groups * (kGroup / 4 * kVectorBytes<Step> / 2);
    const auto run = [&](int64_t tile, const auto& source, const auto& ahead) {
      const int64_t i = tile * least + (tile < larger ? tile : larger);
      run_panel_tile<Step, kGroup, kBlocks, kPanelTileRows>(least + (tile < larger), source, groups, here.from(i),
                                                            ahead, sums.v + i);
    };
    if constexpr (kStoredPanels) {
      const StoredPanel<Step, kGroup, kBlocks, false> stored{at, block_bytes, panel};
      if (tiles == 1) {
        run(0, stored, Ahead<kBlocks, 1, false>{next, block_bytes});
        continue;
      }
      if (tiles == 2) {
        for (int64_t i = 0; i < 2; ++i) run(i, stored, Ahead<kBlocks, 2, false>{next + i * half, block_bytes});
        continue;
      }
      // It waits for lines itself: more requests would be in its way.
      run(0, StoredPanel<Step, kGroup, kBlocks, true>{at, block_bytes, panel}, Ahead<kBlocks, 0, true>{next, 0});
      for (int64_t i = 0; i < 2; ++i) run(1 + i, panel, Ahead<kBlocks, 2, true>{next + i * half, block_bytes});
      for (int64_t tile = 3; tile < tiles; ++tile) run(tile, panel, Ahead<kBlocks, 0, true>{next, 0});
    } else {
      fill_panel<Step>(at, block_bytes, kGroup, groups, panel);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        run(tile, panel, Ahead<kBlocks, 2, true>{next + tile % 2 * half, block_bytes});
      }
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
