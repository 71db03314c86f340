// Dot products of kBlocks consecutive weight blocks (16 output rows each) with kRows input rows: the only place, with
// layout.h, that knows the weight layouts. Each weight vector is loaded and unpacked once for all the input rows.
// A dot product adds up in the order of the columns whatever the tile, so a row's result does not depend on which other
// rows run with it. The parallelism that hides latency comes from the blocks and rows of a tile.
#pragma once

#include "kernels/kernels.h"

namespace deepmnn::DEEPMNN_NS {

// One input row: floats, or the quantised form.
struct Row {
  const float* x;
  QuantizedRows quantized;
};

// Bytes ahead of the reader that a walk asks for: enough to hide memory latency at full bandwidth.
constexpr int64_t kPrefetch = 8192;

template <int kBlocks, int kRows>
struct Tile {
  F32x16 v[kBlocks][kRows];
};

template <int kBlocks, int kRows>
DEEPMNN_INLINE void clear(Tile<kBlocks, kRows>& tile) {
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) tile.v[b][r] = splat(0.0f);
  }
}

template <int kBlocks, int kRows>
DEEPMNN_INLINE void dot_f32(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                            Tile<kBlocks, kRows>& out) {
  clear(out);
  for (int64_t k = 0; k < weight.cols; ++k, w += 64) {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const uint8_t* at = w + b * block_bytes;
      if (kRows == 1) prefetch(at + kPrefetch);
      const F32x16 weights = load(reinterpret_cast<const float*>(at));
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) out.v[b][r] = fma(weights, splat(rows[r].x[k]), out.v[b][r]);
    }
  }
}

// Columns k and, if it exists, k + 1 (k even) of bf16 blocks.
template <bool kSecond, int kBlocks, int kRows>
DEEPMNN_INLINE void step_bf16(const uint8_t* w, int64_t block_bytes, const Row* rows, int64_t k,
                              Tile<kBlocks, kRows>& out) {
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    const uint8_t* at = w + b * block_bytes + k * 32;
    if (kRows == 1) prefetch(at + kPrefetch);
    const I32x16 pair = load_i32(at);
    const F32x16 low = from_bits(shift_left(pair, 16)), high = from_bits(pair & splat_i32(-65536));
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      out.v[b][r] = fma(low, splat(rows[r].x[k]), out.v[b][r]);
      if (kSecond) out.v[b][r] = fma(high, splat(rows[r].x[k + 1]), out.v[b][r]);
    }
  }
}

template <int kBlocks, int kRows>
DEEPMNN_INLINE void dot_bf16(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                             Tile<kBlocks, kRows>& out) {
  clear(out);
  int64_t k = 0;
  for (; k + 2 <= weight.cols; k += 2) step_bf16<true>(w, block_bytes, rows, k, out);
  if (k < weight.cols) step_bf16<false>(w, block_bytes, rows, k, out);
}

template <int kBlocks, int kRows>
struct IntTile {
  I32x16 v[kBlocks][kRows];
};

// 64 bytes of w4 blocks: 8 columns, whose activation codes start at `column`.
struct StepW4 {
  static constexpr int kColumns = 8;
  static constexpr bool kMultiplied = true;  // groups have multipliers
  // 128 plus the value of vector v (4 columns) of what lies at w.
  template <class M>
  static DEEPMNN_INLINE U8x64 vector(const uint8_t* w, int v, const M& multipliers) {
    const U8x64 packed = load_u8(w + v / 2 * 64);
    return v % 2 == 0 ? multiplied_low(packed, multipliers) : multiplied_high(packed, multipliers);
  }
  template <int kRows>
  static DEEPMNN_INLINE void run(const uint8_t* w, const QuantizedRows* rows, int64_t column, IntTile<1, kRows>& acc) {
    const U8x64 packed = load_u8(w), low = low_nibbles(packed), high = high_nibbles(packed);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) acc.v[0][r] = dot_w4(acc.v[0][r], low, high, rows[r].codes + column);
  }
};

// 64 bytes of w8 blocks: 4 columns.
struct StepW8 {
  static constexpr int kColumns = 4;
  static constexpr bool kMultiplied = false;
  template <class M>
  static DEEPMNN_INLINE U8x64 vector(const uint8_t* w, int v, const M&) {
    return load_u8(w + v * 64);
  }
  template <int kRows>
  static DEEPMNN_INLINE void run(const uint8_t* w, const QuantizedRows* rows, int64_t column, IntTile<1, kRows>& acc) {
    const U8x64 packed = load_u8(w);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) acc.v[0][r] = dot_w8(acc.v[0][r], packed, rows[r].codes + column);
  }
};

// kSteps steps in a row, in turn over the kCount sets of accumulators: unrolled, because at a loop's edge compilers
// copy every accumulator (int8 ran at 57 % of the multipliers' peak instead of 77 %).
template <class Step, int kSteps, int kRows, int kCount>
DEEPMNN_INLINE void walk(const uint8_t*& w, const QuantizedRows* rows, int64_t& column,
                         IntTile<1, kRows> (&acc)[kCount]) {
  DEEPMNN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    prefetch(w + kPrefetch);
    Step::run(w, rows, column, acc[s % kCount]);
    w += 64;
    column += Step::kColumns;
  }
}

// The next `cols` columns (a multiple of kTogether * Step::kColumns) of one block, added to `sums`. Accumulators are
// split in two where registers allow (exact, so their order does not matter).
template <class Step, int kTogether, int kRows>
DEEPMNN_INLINE void add_columns(const uint8_t*& w, const QuantizedRows* rows, int64_t& column, int64_t cols,
                                I32x16 (&sums)[kRows]) {
  constexpr int kCount = kRows <= kSplitSums ? 2 : 1;
  IntTile<1, kRows> acc[kCount];
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    acc[0].v[0][r] = sums[r];
    if (kCount == 2) acc[kCount - 1].v[0][r] = splat_i32(0);
  }
  for (const int64_t end = column + cols; column < end;) walk<Step, kTogether>(w, rows, column, acc);
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    sums[r] = kCount == 2 ? acc[0].v[0][r] + acc[kCount - 1].v[0][r] : acc[0].v[0][r];
  }
}

// The sums of one panel of `cols` columns, as floats that hold them exactly; w moves on to the panel's scales.
template <class Step, int kGroup, int kRows>
DEEPMNN_INLINE void sum_panel(const uint8_t*& w, const QuantizedRows* rows, int64_t cols, F32x16 (&out)[kRows]) {
  I32x16 sums[kRows];
  int64_t column = 0;
  if constexpr (kGroup == kPanelCols) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) sums[r] = splat_i32(-kW8Bias * rows[r].heads->sum);
    add_columns<Step, kPartCols / Step::kColumns>(w, rows, column, (cols + kPartCols - 1) / kPartCols * kPartCols,
                                                  sums);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) out[r] = to_float(sums[r]);
  } else {
    constexpr int kSteps = kGroup / Step::kColumns, kTogether = kSteps < 8 ? kSteps : 8;
    const int8_t* multipliers = reinterpret_cast<const int8_t*>(w) + (cols + kGroup - 1) / kGroup * kGroup * 8;
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) out[r] = splat(0.0f);
    for (; column < cols; multipliers += kBlockRows) {
      const I32x16 multiplier = widen_i8(multipliers);
      const I32x16 zero = (splat_i32(-8) + shift_right(multiplier, 31)) & splat_i32(0xffff);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int32_t* part_sums = rows[r].heads->part_sums + column / kPartCols;
        int32_t total = 0;
        for (int i = 0; i < kGroup / kPartCols; ++i) total += part_sums[i];
        sums[r] = dot_pairs(splat_i32(0), zero, splat_i32(total));
      }
      add_columns<Step, kTogether>(w, rows, column, kGroup, sums);
      const F32x16 size = to_float(max(multiplier, splat_i32(0) - multiplier));
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) out[r] = fma(to_float(sums[r]), size, out[r]);  // exact, below 2^24
    }
    w = reinterpret_cast<const uint8_t*>(multipliers);
  }
}

// 16 scales of a panel: what sums of codes (w4: times multipliers) are multiplied by.
template <class Step>
DEEPMNN_INLINE F32x16 panel_scale(const uint8_t* w) {
  return Step::kMultiplied ? load_f16(w) * splat(1.0f / 16) : load_f16(w);
}

// One block, read as one stream. Panel by panel: exact sums times the weights' scale, then one multiply-add with the
// activations'.
template <class Step, int kGroup, int kRows>
DEEPMNN_INLINE void dot_panels(const uint8_t* w, int64_t cols, const Row* rows, Tile<1, kRows>& out) {
  clear(out);
  QuantizedRows at[kRows];
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) at[r] = rows[r].quantized;
  for (; cols > 0; cols -= kPanelCols) {
    F32x16 sums[kRows];
    sum_panel<Step, kGroup>(w, at, cols < kPanelCols ? cols : kPanelCols, sums);
    const F32x16 scale = panel_scale<Step>(w);
    w += 2 * kBlockRows;
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      out.v[0][r] = fma(sums[r] * scale, splat(at[r].heads->scale), out.v[0][r]);
      at[r] = at[r].from_panel(1);
    }
  }
}

// Dot products of the blocks at w with `rows`, in any layout; integers take one block.
template <Format kFormat, int kBlocks, int kRows>
DEEPMNN_INLINE void dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                        Tile<kBlocks, kRows>& out) {
  if constexpr (kFormat == Format::f32) dot_f32(w, block_bytes, weight, rows, out);
  if constexpr (kFormat == Format::bf16) dot_bf16(w, block_bytes, weight, rows, out);
  if constexpr (kFormat == Format::w8) dot_panels<StepW8, kPanelCols>(w, weight.cols, rows, out);
  if constexpr (kFormat == Format::w4) {
    switch (weight.group_size) {
      case 32:
        return dot_panels<StepW4, 32>(w, weight.cols, rows, out);
      case 64:
        return dot_panels<StepW4, 64>(w, weight.cols, rows, out);
      default:
        return dot_panels<StepW4, 128>(w, weight.cols, rows, out);
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
