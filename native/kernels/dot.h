// Dot products of kBlocks consecutive weight blocks (16 output rows each) with kRows input rows: the only place, with
// pack.h, that knows the weight layouts. Each weight vector is loaded and unpacked once for all the input rows.
#pragma once

#include "kernels/kernels.h"

namespace deepmnn::DEEPMNN_NS {

// One input row: floats, or the quantised form.
struct Row {
  const float* x;
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
};

// Bytes ahead of the reader that a single-row walk asks for: enough to hide memory latency at full bandwidth.
constexpr int64_t kPrefetch = 8192;

template <int kBlocks, int kRows>
struct Tile {
  F32x16 v[kBlocks][kRows];
};

// One row leaves the multiply-add units waiting for the last result, so it gets several accumulators.
template <int kBlocks, int kRows>
constexpr int kChains = kBlocks * kRows == 1   ? 4
                        : kBlocks * kRows == 2 ? 2
                                               : 1;

template <int kBlocks, int kRows>
DEEPMNN_INLINE void clear(Tile<kBlocks, kRows>& tile) {
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) tile.v[b][r] = splat(0.0f);
  }
}

// Columns [k, k + 1) of f32 blocks.
template <int kBlocks, int kRows>
DEEPMNN_INLINE void step_f32(const uint8_t* w, int64_t block_bytes, const Row* rows, int64_t k,
                             Tile<kBlocks, kRows>& acc) {
  if (kRows == 1) prefetch(w + k * 64 + kPrefetch);
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    const F32x16 weights = load(reinterpret_cast<const float*>(w + b * block_bytes) + k * 16);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) acc.v[b][r] = fma(weights, splat(rows[r].x[k]), acc.v[b][r]);
  }
}

// Columns k and, if it exists, k + 1 (k even) of bf16 blocks.
template <int kBlocks, int kRows>
DEEPMNN_INLINE void step_bf16(const uint8_t* w, int64_t block_bytes, const Row* rows, int64_t k, bool second,
                              Tile<kBlocks, kRows>& acc) {
  if (kRows == 1) prefetch(w + k * 32 + kPrefetch);
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    const I32x16 pair = load_i32(w + b * block_bytes + k * 32);
    const F32x16 low = from_bits(shift_left(pair, 16)), high = from_bits(pair & splat_i32(-65536));
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      acc.v[b][r] = fma(low, splat(rows[r].x[k]), acc.v[b][r]);
      if (second) acc.v[b][r] = fma(high, splat(rows[r].x[k + 1]), acc.v[b][r]);
    }
  }
}

// Sums the chains of every accumulator into the first.
template <int kBlocks, int kRows, int kCount>
DEEPMNN_INLINE void fold(Tile<kBlocks, kRows> (&chains)[kCount]) {
  DEEPMNN_UNROLL
  for (int c = 1; c < kCount; ++c) {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) chains[0].v[b][r] = chains[0].v[b][r] + chains[c].v[b][r];
    }
  }
}

template <int kBlocks, int kRows>
DEEPMNN_INLINE void dot_f32(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                            Tile<kBlocks, kRows>& out) {
  constexpr int kCount = kChains<kBlocks, kRows>;
  Tile<kBlocks, kRows> chains[kCount];
  DEEPMNN_UNROLL
  for (int c = 0; c < kCount; ++c) clear(chains[c]);
  int64_t k = 0;
  for (; k + kCount <= weight.cols; k += kCount) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kCount; ++c) step_f32(w, block_bytes, rows, k + c, chains[c]);
  }
  for (; k < weight.cols; ++k) step_f32(w, block_bytes, rows, k, chains[0]);
  fold(chains);
  out = chains[0];
}

template <int kBlocks, int kRows>
DEEPMNN_INLINE void dot_bf16(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                             Tile<kBlocks, kRows>& out) {
  constexpr int kCount = kChains<kBlocks, kRows>;
  Tile<kBlocks, kRows> chains[kCount];
  DEEPMNN_UNROLL
  for (int c = 0; c < kCount; ++c) clear(chains[c]);
  int64_t k = 0;
  for (; k + 2 * kCount <= weight.cols; k += 2 * kCount) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kCount; ++c) step_bf16(w, block_bytes, rows, k + 2 * c, true, chains[c]);
  }
  for (; k + 2 <= weight.cols; k += 2) step_bf16(w, block_bytes, rows, k, true, chains[0]);
  if (k < weight.cols) step_bf16(w, block_bytes, rows, k, false, chains[0]);
  fold(chains);
  out = chains[0];
}

template <int kBlocks, int kRows>
struct IntTile {
  I32x16 v[kBlocks][kRows];
};

// 64 bytes of w4 blocks: 8 columns, whose activation codes start at `column`.
struct StepW4 {
  static constexpr int kColumns = 8;
  static constexpr int kBias = 8;
  template <int kBlocks, int kRows>
  static DEEPMNN_INLINE void run(const uint8_t* w, int64_t block_bytes, const Row* rows, int64_t column,
                                 IntTile<kBlocks, kRows>& acc) {
    U8x64 low[kBlocks], high[kBlocks];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const U8x64 packed = load_u8(w + b * block_bytes);
      low[b] = low_nibbles(packed);
      high[b] = high_nibbles(packed);
    }
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) acc.v[b][r] = dot_w4(acc.v[b][r], low[b], high[b], rows[r].codes + column);
    }
  }
};

// 64 bytes of w8 blocks: 4 columns.
struct StepW8 {
  static constexpr int kColumns = 4;
  static constexpr int kBias = kW8Bias;
  template <int kBlocks, int kRows>
  static DEEPMNN_INLINE void run(const uint8_t* w, int64_t block_bytes, const Row* rows, int64_t column,
                                 IntTile<kBlocks, kRows>& acc) {
    U8x64 packed[kBlocks];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) packed[b] = load_u8(w + b * block_bytes);
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      DEEPMNN_UNROLL
      for (int b = 0; b < kBlocks; ++b) acc.v[b][r] = dot_w8(acc.v[b][r], packed[b], rows[r].codes + column);
    }
  }
};

// Group by group: exact int32 sums, started at -offset * sum of codes, then one multiply-add with both scales.
template <class Step, int kBlocks, int kRows>
DEEPMNN_INLINE void dot_quantized(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                                  Tile<kBlocks, kRows>& out) {
  constexpr int kCount = kBlocks * kRows <= 2 ? 2 : 1;  // a group has an even number of steps
  const int64_t groups = (weight.cols + weight.group_size - 1) / weight.group_size;
  const int64_t steps = weight.group_size / Step::kColumns;
  int64_t column = 0;
  clear(out);
  for (int64_t g = 0; g < groups; ++g) {
    IntTile<kBlocks, kRows> acc[kCount];
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[0].v[b][r] = splat_i32(-Step::kBias * rows[r].sums[g]);
        if (kCount == 2) acc[kCount - 1].v[b][r] = splat_i32(0);
      }
    }
    for (int64_t s = 0; s < steps; s += kCount) {
      DEEPMNN_UNROLL
      for (int c = 0; c < kCount; ++c) {
        if (kRows == 1) prefetch(w + kPrefetch);
        Step::template run<kBlocks, kRows>(w, block_bytes, rows, column, acc[c]);
        w += 64;
        column += Step::kColumns;
      }
    }
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const F32x16 scale = load_f16(w + b * block_bytes);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const I32x16 total = kCount == 2 ? acc[0].v[b][r] + acc[kCount - 1].v[b][r] : acc[0].v[b][r];
        out.v[b][r] = fma(to_float(total), scale * splat(rows[r].scales[g]), out.v[b][r]);
      }
    }
    w += 2 * kBlockRows;
  }
}

// Dot products of the blocks at w with `rows`, in any layout.
template <DType kDType, int kBlocks, int kRows>
DEEPMNN_INLINE void dot(const uint8_t* w, int64_t block_bytes, const Weight& weight, const Row* rows,
                        Tile<kBlocks, kRows>& out) {
  if constexpr (kDType == DType::f32) dot_f32(w, block_bytes, weight, rows, out);
  if constexpr (kDType == DType::bf16) dot_bf16(w, block_bytes, weight, rows, out);
  if constexpr (kDType == DType::w8) dot_quantized<StepW8>(w, block_bytes, weight, rows, out);
  if constexpr (kDType == DType::w4) dot_quantized<StepW4>(w, block_bytes, weight, rows, out);
}

}  // namespace deepmnn::DEEPMNN_NS
