// Dot products of kBlocks consecutive weight blocks (16 output rows each) with kRows input rows: the only place, with
// pack.h, that knows the weight layouts. Each weight vector is loaded and unpacked once for all the input rows.
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

// One panel of a quantised row.
struct PanelRow {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
};

// The panel of the row `at` rows on: rows.from(at) with a group size that the compiler knows.
template <int kGroup>
DEEPMNN_INLINE PanelRow panel_row(const QuantizedRows& rows, int64_t at) {
  const int64_t group = at * (kPanelCols / kGroup);
  return {rows.codes + at * kPanelCols, rows.scales + group, rows.sums + group};
}

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
  static constexpr int kBias = 8;
  static DEEPMNN_INLINE I32x16 panel(I32x16 acc, const uint8_t* w, const int8_t* a) { return panel_w4(acc, w, a); }
  // Vector v (4 columns) of what lies at w.
  static DEEPMNN_INLINE U8x64 vector(const uint8_t* w, int v) {
    const U8x64 packed = load_u8(w + v / 2 * 64);
    return v % 2 == 0 ? low_nibbles(packed) : high_nibbles(packed);
  }
  template <int kRows>
  static DEEPMNN_INLINE void run(const uint8_t* w, const PanelRow* rows, int64_t column, IntTile<1, kRows>& acc) {
    const U8x64 packed = load_u8(w), low = low_nibbles(packed), high = high_nibbles(packed);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) acc.v[0][r] = dot_w4(acc.v[0][r], low, high, rows[r].codes + column);
  }
};

// 64 bytes of w8 blocks: 4 columns.
struct StepW8 {
  static constexpr int kColumns = 4;
  static constexpr int kBias = kW8Bias;
  static DEEPMNN_INLINE I32x16 panel(I32x16 acc, const uint8_t* w, const int8_t* a) { return panel_w8(acc, w, a); }
  static DEEPMNN_INLINE U8x64 vector(const uint8_t* w, int v) { return load_u8(w + v * 64); }
  template <int kRows>
  static DEEPMNN_INLINE void run(const uint8_t* w, const PanelRow* rows, int64_t column, IntTile<1, kRows>& acc) {
    const U8x64 packed = load_u8(w);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) acc.v[0][r] = dot_w8(acc.v[0][r], packed, rows[r].codes + column);
  }
};

// kSteps steps in a row, in turn over the kCount sets of accumulators: unrolled, because at a loop's edge compilers
// copy every accumulator (int8 ran at 57 % of the multipliers' peak instead of 77 %).
template <class Step, int kSteps, int kRows, int kCount>
DEEPMNN_INLINE void walk(const uint8_t*& w, const PanelRow* rows, int64_t& column, IntTile<1, kRows> (&acc)[kCount]) {
  DEEPMNN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    prefetch(w + kPrefetch);
    Step::run(w, rows, column, acc[s % kCount]);
    w += 64;
    column += Step::kColumns;
  }
}

// One block, read as one stream. Group by group: exact int32 sums, started at -offset * sum of codes, times the
// weights' scale, then one multiply-add with the activations'.
template <class Step, int kGroup, int kRows>
DEEPMNN_INLINE void dot_groups(const uint8_t* w, int64_t cols, const Row* rows, Tile<1, kRows>& out) {
  constexpr int kCount = kRows <= kSplitSums ? 2 : 1;  // accumulators (exact, so their order does not matter)
  constexpr int kSteps = kGroup / Step::kColumns, kTogether = kSteps < 8 ? kSteps : 8;
  clear(out);
  for (int64_t panel = 0; panel * kPanelCols < cols; ++panel) {
    PanelRow at[kRows];
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) at[r] = panel_row<kGroup>(rows[r].quantized, panel * rows[r].quantized.height);
    const int64_t left = cols - panel * kPanelCols, end = left < kPanelCols ? left : kPanelCols;
    for (int64_t column = 0, g = 0; column < end; ++g) {
      IntTile<1, kRows> acc[kCount];
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[0].v[0][r] = splat_i32(-Step::kBias * at[r].sums[g]);
        if (kCount == 2) acc[kCount - 1].v[0][r] = splat_i32(0);
      }
      for (int s = 0; s < kSteps; s += kTogether) walk<Step, kTogether>(w, at, column, acc);
      const F32x16 scale = load_f16(w);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const I32x16 total = kCount == 2 ? acc[0].v[0][r] + acc[kCount - 1].v[0][r] : acc[0].v[0][r];
        out.v[0][r] = fma(to_float(total) * scale, splat(at[r].scales[g]), out.v[0][r]);
      }
      w += 2 * kBlockRows;
    }
  }
}

template <class Step, int kRows>
DEEPMNN_INLINE void dot_quantized(const uint8_t* w, const Weight& weight, const Row* rows, Tile<1, kRows>& out) {
  switch (weight.group_size) {
    case 32:
      return dot_groups<Step, 32>(w, weight.cols, rows, out);
    case 64:
      return dot_groups<Step, 64>(w, weight.cols, rows, out);
    default:
      return dot_groups<Step, 128>(w, weight.cols, rows, out);
  }
}

// Dot products of the blocks at w with `rows`, in any layout; integers take one block.
template <DType kDType, int kBlocks, int kRows>
DEEPMNN_INLINE void dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                        Tile<kBlocks, kRows>& out) {
  if constexpr (kDType == DType::f32) dot_f32(w, block_bytes, weight, rows, out);
  if constexpr (kDType == DType::bf16) dot_bf16(w, block_bytes, weight, rows, out);
  if constexpr (kDType == DType::w8) dot_quantized<StepW8>(w, weight, rows, out);
  if constexpr (kDType == DType::w4) dot_quantized<StepW4>(w, weight, rows, out);
}

}  // namespace deepmnn::DEEPMNN_NS
