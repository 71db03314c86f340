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

// Bytes ahead of the reader that a walk asks for.
constexpr int64_t kPrefetch = 8192;

// A stream of panels asks for one line ahead in each: the hardware reads on by itself, but only inside a page, and the
// line brings in the next one. Asking for every line gets in its way (docs/log.md).
DEEPMNN_INLINE void ask_ahead(const uint8_t* w) { prefetch(w + kPrefetch); }

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

// The codes of a quantised format: kPartVectors vectors of 16 rows × 4 columns to a part.
constexpr int kPartVectors = kPartCols / 4;

// 16 bytes, for lookup: the levels of a format's first codes, less the least number of level_bits.
struct LevelTable {
  alignas(16) uint8_t v[16];
};
constexpr LevelTable level_table(const FormatInfo& format) {
  LevelTable table{};
  for (int i = 0; i < 16; ++i) {
    const int code = i % (1 << format.bits);
    table.v[i] = static_cast<uint8_t>(level_of(format, code) + (1 << (format.level_bits - 1)));
  }
  return table;
}

template <Format kFormat>
struct Codec {
  static constexpr int kBits = info_of(kFormat).bits;
  static constexpr int kLevelBits = info_of(kFormat).level_bits;
  static constexpr int kOffset = kDotOffset<kLevelBits>;  // what DotRun leaves to take off, of every level
  static constexpr int kPartBytes = static_cast<int>(part_nbytes(kFormat));

  // The levels of codes of up to 4 bits, less the least number of kLevelBits; other codes as they are.
  static DEEPMNN_INLINE U8x64 levels(U8x64 codes) {
    constexpr FormatInfo kInfo = info_of(kFormat);
    if constexpr (has_table(kInfo) && kBits <= 4) {
      static constexpr LevelTable kTable = level_table(kInfo);
      return lookup(kTable.v, codes);
    }
    return codes;
  }
  // Vector v of the part at `part`: levels, less the least number of kLevelBits.
  static DEEPMNN_INLINE U8x64 vector(const uint8_t* part, int v) {
    constexpr FormatInfo kInfo = info_of(kFormat);
    if constexpr (!has_table(kInfo) || kBits <= 4) {
      return levels(code(part, v));
    } else {
      static_assert(kBits == 5 && kLevelBits == 8, "the top bit turns a level over");
      static constexpr LevelTable kTable = level_table(kInfo);
      return turn_where(lookup(kTable.v, plane<4>(part, v)), load_u8(part + 256), v);
    }
  }

 private:
  static DEEPMNN_INLINE U8x64 code(const uint8_t* part, int v) {
    if constexpr (kBits == 8) {
      return load_u8(part + v * 64);
    } else if constexpr (kBits >= 4) {
      return with_planes<kBits - 4, 4>(part + 256, v, plane<4>(part, v));
    } else {
      return with_planes<kBits - 2, 2>(part + 128, v, plane<2>(part, v));
    }
  }
  // The bits of vector v in a plane of kSize bits, as the lowest of a code.
  template <int kSize>
  static DEEPMNN_INLINE U8x64 plane(const uint8_t* at, int v) {
    constexpr int kShared = 8 / kSize;
    return move_bits<kSize, 0>(load_u8(at + v / kShared * 64), v % kShared * kSize);
  }
  // Codes whose lowest kLow bits are `low` and whose others are a plane of kSize bits (0: none).
  template <int kSize, int kLow>
  static DEEPMNN_INLINE U8x64 with_planes(const uint8_t* at, int v, U8x64 low) {
    if constexpr (kSize == 0) {
      return low;
    } else {
      static_assert(kSize == 1 || kSize == 2, "two planes at most");
      constexpr int kShared = 8 / kSize;
      return low | move_bits<kSize, kLow>(load_u8(at + v / kShared * 64), v % kShared * kSize);
    }
  }
};

// The part at w with kRows rows of activations, whose codes begin at a[r]. Vectors take turns over kCount sets of sums.
template <Format kFormat, int kRows, int kCount>
DEEPMNN_INLINE void add_part(const uint8_t* w, const int8_t* const (&a)[kRows], IntTile<1, kRows> (&acc)[kCount]) {
  using Run = DotRun<Codec<kFormat>::kLevelBits>;
  DEEPMNN_UNROLL
  for (int first = 0; first < kPartVectors; first += Run::kMost) {
    IntTile<1, kRows>& sums = acc[first / Run::kMost % kCount];
    Run runs[kRows];
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) runs[r].start(sums.v[0][r]);
    DEEPMNN_UNROLL
    for (int v = first; v < first + Run::kMost; ++v) {
      const U8x64 codes = Codec<kFormat>::vector(w, v);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) runs[r].add(codes, a[r] + 4 * v);
    }
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) sums.v[0][r] = runs[r].sum();
  }
}

// The sums of one panel of `cols` columns (a multiple of kPartCols), as floats that hold them exactly; w moves on to
// the panel's scales. They are kept in two parts where registers allow (exact, so their order does not matter).
template <Format kFormat, int kRows>
DEEPMNN_INLINE void sum_panel(const uint8_t*& w, const QuantizedRows* rows, int64_t cols, F32x16 (&out)[kRows]) {
  constexpr int kCount = kRows <= kSplitSums ? 2 : 1;
  IntTile<1, kRows> acc[kCount];
  const int8_t* a[kRows];
  ask_ahead(w);
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    a[r] = rows[r].codes;
    acc[0].v[0][r] = splat_i32(-Codec<kFormat>::kOffset * rows[r].heads->sum);
    if (kCount == 2) acc[kCount - 1].v[0][r] = splat_i32(0);
  }
  for (int64_t part = 0; part < cols; part += kPartCols) {
    add_part<kFormat>(w, a, acc);
    w += Codec<kFormat>::kPartBytes;
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) a[r] += kPartCols;
  }
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    out[r] = to_float(kCount == 2 ? acc[0].v[0][r] + acc[kCount - 1].v[0][r] : acc[0].v[0][r]);
  }
}

// One block, read as one stream. Panel by panel: exact sums times the weights' scale, then one multiply-add with the
// activations'.
template <Format kFormat, int kRows>
DEEPMNN_INLINE void dot_panels(const uint8_t* w, int64_t cols, const Row* rows, Tile<1, kRows>& out) {
  clear(out);
  QuantizedRows at[kRows];
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) at[r] = rows[r].quantized;
  for (; cols > 0; cols -= kPanelCols) {
    F32x16 sums[kRows];
    sum_panel<kFormat>(w, at, cols < kPanelCols ? cols : kPanelCols, sums);
    const F32x16 scale = load_f16(w);
    w += 2 * kBlockRows;
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      out.v[0][r] = fma(sums[r] * scale, splat(at[r].heads->scale), out.v[0][r]);
      at[r] = at[r].from_panel(1);
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
