// Quantised matrix products for more rows than dot.h takes: a few blocks side by side, panel by panel. One tile of rows
// reads a panel as it is stored; the first of more (without kStoredPanels, a pass of its own) unpacks it into bytes
// that stay in the first-level cache while all of them pass. Between panels the running sums wait in memory. A panel's
// sum is one of integers and panels are added up in the order of the columns, as in dot.h: every way gives the same
// bits.
#pragma once

#include "kernels/dot.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

// Bytes of a vector (4 columns) of a block as it is stored, on average.
template <Format kFormat>
constexpr int kVectorBytes = Codec<kFormat>::kPartBytes / kPartVectors;

// Bytes of the codes of a panel of `cols` columns, padding included; its scales follow them.
template <Format kFormat>
constexpr int64_t codes_nbytes(int64_t cols) {
  return cols / kPartCols * Codec<kFormat>::kPartBytes;
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
  alignas(64) float scales[kBlocks][kBlockRows];

  static constexpr int64_t place(int64_t v, int b) {
    return (((v / kPanelStep) * kBlocks + b) * kPanelStep + v % kPanelStep) * 64;
  }
  DEEPMNN_INLINE uint8_t* vector(int64_t v, int b) { return codes + place(v, b); }
  DEEPMNN_INLINE const uint8_t* vector(int64_t v, int b) const { return codes + place(v, b); }

  // Adds its codes times those of kRows rows. A loop, because the cache of decoded instructions is small and the tiles
  // of a few rows are all different code.
  template <Format kFormat, int kRows, class Asks>
  DEEPMNN_INLINE void add(int64_t cols, const QuantizedRows& rows, Asks& ahead, IntTile<kBlocks, kRows>& acc) const {
    constexpr int kSteps = kStoredPanels ? 4 : 1, kVectors = kSteps * kPanelStep;
    static_assert(kPartVectors % kVectors == 0);
    const uint8_t* w = codes;
    for (int64_t column = 0; column < cols; column += 4 * kVectors, w += kVectors * kBlocks * 64) {
      DEEPMNN_UNROLL
      for (int s = 0; s < kSteps; ++s) {
        ahead.template fetch<kVectors * kVectorBytes<kFormat>, kSteps>(s);
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const int8_t* a = rows.codes + r * kPanelCols + column + 4 * kPanelStep * s;
          DEEPMNN_UNROLL
          for (int b = 0; b < kBlocks; ++b) add_step<kFormat>(w + (s * kBlocks + b) * kPanelStep * 64, a, acc.v[b][r]);
        }
      }
    }
  }
  template <Format kFormat>
  DEEPMNN_INLINE F32x16 scale(int64_t, int b) const {
    return load(scales[b]);
  }

 private:
  // kPanelStep vectors of one block with a row.
  template <Format kFormat>
  static DEEPMNN_INLINE void add_step(const uint8_t* w, const int8_t* a, I32x16& acc) {
    using Run = DotRun<Codec<kFormat>::kLevelBits>;
    constexpr int kMost = Run::kMost < kPanelStep ? Run::kMost : kPanelStep;
    DEEPMNN_UNROLL
    for (int first = 0; first < kPanelStep; first += kMost) {
      Run run;
      run.start(acc);
      DEEPMNN_UNROLL
      for (int v = first; v < first + kMost; ++v) run.add(load_u8(w + 64 * v), a + 4 * v);
      acc = run.sum();
    }
  }
};

// The same interface over a panel as it is stored. Codes are read anew for each four columns: registers hold the sums.
// With kUnpack the codes are left in `panel` for the tiles to come.
template <int kBlocks, bool kUnpack>
struct StoredPanel {
  const uint8_t* w;  // the first block
  int64_t block_bytes;
  Panel<kBlocks>& panel;

  template <Format kFormat, int kRows, class Asks>
  DEEPMNN_INLINE void add(int64_t cols, const QuantizedRows& rows, Asks& ahead, IntTile<kBlocks, kRows>& acc) const {
    using Of = Codec<kFormat>;
    const uint8_t* at = w;
    const int8_t* a = rows.codes;
    for (int64_t part = 0; part < cols / kPartCols; ++part, at += Of::kPartBytes, a += kPartCols) {
      DEEPMNN_UNROLL
      for (int v = 0; v < kPartVectors; ++v) {
        ahead.template fetch<Of::kPartBytes, kPartVectors>(v);
        __asm__ volatile("" : : : "memory");
        U8x64 codes[kBlocks];
        DEEPMNN_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          codes[b] = Of::vector(at + b * block_bytes, v);
          if constexpr (kUnpack) store_u8(panel.vector(part * kPartVectors + v, b), codes[b]);
        }
        DEEPMNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          DEEPMNN_UNROLL
          for (int b = 0; b < kBlocks; ++b) {
            DotRun<Of::kLevelBits> run;
            run.start(acc.v[b][r]);
            run.add(codes[b], a + r * kPanelCols + 4 * v);
            acc.v[b][r] = run.sum();
          }
        }
      }
    }
  }
  template <Format kFormat>
  DEEPMNN_INLINE F32x16 scale(int64_t cols, int b) const {
    const F32x16 scale = load_f16(w + b * block_bytes + codes_nbytes<kFormat>(cols));
    if constexpr (kUnpack) store(panel.scales[b], scale);
    return scale;
  }
};

// Sums of the rows that pass: [kLinearPanelRows][kBlocks] vectors.
template <int kBlocks>
struct Sums {
  alignas(64) float v[kLinearPanelRows][kBlocks][kBlockRows];
};

// The codes of a panel of the blocks at w. The blocks take turns, so that their reads overlap.
template <Format kFormat, int kBlocks>
void unpack_codes(const uint8_t* w, int64_t block_bytes, int64_t cols, Panel<kBlocks>& panel) {
  const uint8_t* at = w;
  for (int64_t part = 0; part < cols / kPartCols; ++part, at += Codec<kFormat>::kPartBytes) {
    DEEPMNN_UNROLL
    for (int v = 0; v < kPartVectors; ++v) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        store_u8(panel.vector(part * kPartVectors + v, b), Codec<kFormat>::vector(at + b * block_bytes, v));
      }
    }
  }
}

// A panel of the blocks at w, where none is read as it is stored.
template <Format kFormat, int kBlocks>
void fill_panel(const uint8_t* w, int64_t block_bytes, int64_t cols, Panel<kBlocks>& panel) {
  unpack_codes<kFormat>(w, block_bytes, cols, panel);
  for (int b = 0; b < kBlocks; ++b) store(panel.scales[b], load_f16(w + b * block_bytes + codes_nbytes<kFormat>(cols)));
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
template <Format kFormat, int kBlocks, int kRows, class Source, class Asks>
void panel_tile(const Source& source, int64_t cols, const QuantizedRows& rows, Asks ahead,
                float (*sums)[kBlocks][kBlockRows]) {
  IntTile<kBlocks, kRows> acc;
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const I32x16 start = splat_i32(kSumStart - Codec<kFormat>::kOffset * rows.heads[r].sum);
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) acc.v[b][r] = start;
  }
  source.template add<kFormat, kRows>(cols, rows, ahead, acc);
  F32x16 scale[kBlocks];
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) scale[b] = source.template scale<kFormat>(cols, b);
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
template <Format kFormat, int kBlocks>
void panel_dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, QuantizedRows rows, int64_t n,
               Sums<kBlocks>& sums) {
  __builtin_memset(sums.v, 0, static_cast<uint64_t>(n) * sizeof(sums.v[0]));
  Panel<kBlocks> panel;
  const uint8_t* const other = w + kBlocks * block_bytes;  // the blocks after these
  const EvenTiles<kPanelTileRows> tiles(n);
  for (int64_t left = stored_cols(kFormat, weight.cols); left > 0; left -= kPanelCols, rows = rows.from_panel(1)) {
    const int64_t cols = left < kPanelCols ? left : kPanelCols, nbytes = codes_nbytes<kFormat>(cols);
    const uint8_t *const at = w, *const next = left <= kPanelCols ? other : w + nbytes + 2 * kBlockRows;
    w = next;
    const int64_t half = nbytes / 2;
    const auto run = [&](int64_t tile, const auto& source, const auto& ahead) {
      const QuantizedRows tile_rows = rows.from(tiles.first(tile));
      float(*const to)[kBlocks][kBlockRows] = sums.v + tiles.first(tile);
      with_count<kLeastTileRows, kPanelTileRows>(tiles.size(tile), [&](auto count) {
        panel_tile<kFormat, kBlocks, count.value>(source, cols, tile_rows, ahead, to);
      });
    };
    if constexpr (kStoredPanels) {
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
      fill_panel<kFormat>(at, block_bytes, cols, panel);
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        run(tile, panel, Ahead<kBlocks, 2, true>{next + tile % 2 * half, block_bytes});
      }
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
