// y = W x for a range of output blocks: walks tiles of blocks x input rows and writes them through the epilogue.
#pragma once

#include "kernels/dot.h"
#include "kernels/kept.h"
#include "kernels/math.h"
#include "kernels/panel.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

// Output blocks of a tile of `rows` input rows. Floats need several blocks to hide the latency of an addition. Integers
// keep sums in two parts instead, and one block is read as one stream, which memory likes best; with more rows every
// activation must serve several blocks, or loading them is what takes the time: that is what panels are for.
template <Format kFormat>
constexpr int tile_blocks(int64_t rows) {
  return is_quantized(kFormat) ? 1 : rows == 1 ? 4 : kTileBlocks;
}
template <Format kFormat>
constexpr int kMostRows = is_quantized(kFormat) ? kStreamRows : kTileRows;

template <Format kFormat>
DEEPMNN_INLINE Row input_row(const LinearTask& task, int64_t i) {
  const Rows& rows = task.rows;
  if constexpr (!is_quantized(kFormat)) {
    return {rows.x + (rows.index ? rows.index[i] : i) * rows.stride, {}};
  } else {
    return {nullptr, rows.quantized.from(i)};
  }
}

// Dot products of kBlocks blocks at w with input rows [i, i + kRows), in any layout; integers take one block.
template <Format kFormat, int kBlocks, int kRows>
DEEPMNN_INLINE void dot(const uint8_t* w, int64_t block_bytes, const LinearTask& task, int64_t i,
                        Tile<kBlocks, kRows>& out) {
  if constexpr (is_kept(kFormat)) {
    dot_kept<kFormat>(w, task.weight, task.rows.quantized.from(i), out);
  } else {
    Row rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = input_row<kFormat>(task, i + r);
    if constexpr (kFormat == Format::f32) {
      dot_f32(w, block_bytes, task.weight, rows, out);
    } else if constexpr (kFormat == Format::bf16) {
      dot_bf16(w, block_bytes, task.weight, rows, out);
    } else {
      dot_panels<kFormat>(w, task.weight.cols, rows, out);
    }
  }
}

// Writes 16 columns, or those that exist, of output block `block` of row i.
DEEPMNN_INLINE void write(const LinearTask& task, int64_t block, int64_t i, F32x16 value) {
  const int64_t column = block * kBlockRows, left = task.out_cols - column;
  const int64_t n = left < kBlockRows ? left : kBlockRows;
  if (n <= 0) return;
  float* y = task.y + i * task.y_stride + column;
  if (n == kBlockRows && task.epilogue != Epilogue::accumulate && !task.bias) return store(y, value);
  if (task.epilogue == Epilogue::accumulate) value = value + load(y, n);
  if (task.epilogue == Epilogue::store && task.bias) value = value + load(task.bias + column, n);
  store(y, value, n);
}

// Output blocks [block, block + kBlocks) of input rows [i, i + kRows).
template <Format kFormat, int kBlocks, int kRows>
void plain_tile(const LinearTask& task, int64_t block, int64_t i) {
  const int64_t block_bytes = block_nbytes(task.weight.format, task.weight.cols);
  Tile<kBlocks, kRows> out;
  dot<kFormat>(task.weight.data + block * block_bytes, block_bytes, task, i, out);
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) write(task, block + b, i + r, out.v[b][r]);
  }
}

// silu(gate) * up, of which both may be limited. This order keeps NaN.
DEEPMNN_INLINE F32x16 gated(const LinearTask& task, F32x16 gate, F32x16 up) {
  if (task.limit > 0.0f) {
    const F32x16 most = splat(task.limit);
    gate = min(most, gate);
    up = max(splat(-task.limit), min(most, up));
  }
  return silu(gate) * up;
}

// Output block `block` of input rows [i, i + kRows): weight block 2 * block is its gate, the next one its up.
template <Format kFormat, int kRows>
void swiglu_tile(const LinearTask& task, int64_t block, int64_t i) {
  const int64_t block_bytes = block_nbytes(task.weight.format, task.weight.cols);
  const uint8_t* w = task.weight.data + 2 * block * block_bytes;
  Tile<2, kRows> out;
  if constexpr (tile_blocks<kFormat>(kRows) > 1) {
    dot<kFormat>(w, block_bytes, task, i, out);
  } else {
    Tile<1, kRows> half;
    DEEPMNN_UNROLL
    for (int b = 0; b < 2; ++b) {
      dot<kFormat>(w + b * block_bytes, block_bytes, task, i, half);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) out.v[b][r] = half.v[0][r];
    }
  }
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) write(task, block, i + r, gated(task, out.v[0][r], out.v[1][r]));
}

// The tile of n_rows (1 .. kMostRows) rows and n_blocks blocks: 1 or tile_blocks.
template <Format kFormat>
void run_tile(const LinearTask& task, int64_t block, int64_t n_blocks, int64_t i, int64_t n_rows) {
  with_count<1, kMostRows<kFormat>>(n_rows, [&](auto count) {
    constexpr int kRows = count.value;
    if (task.epilogue == Epilogue::swiglu) return swiglu_tile<kFormat, kRows>(task, block, i);
    if (n_blocks == 1) return plain_tile<kFormat, 1, kRows>(task, block, i);
    plain_tile<kFormat, tile_blocks<kFormat>(kRows), kRows>(task, block, i);
  });
}

// value(i, b) to block `block` + b of row `first` + i, of n rows. A row lies far from the last one: its lines are asked
// for in time.
template <int kBlocks, class Value>
void write_whole_rows(const LinearTask& task, int64_t block, int64_t first, int64_t n, const Value& value) {
  constexpr int64_t kRowsAhead = 8;
  float* y = task.y + first * task.y_stride + block * kBlockRows;
  for (int64_t i = 0; i < n; ++i, y += task.y_stride) {
    DEEPMNN_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      if (i + kRowsAhead < n) prefetch(y + kRowsAhead * task.y_stride + b * kBlockRows);
      store(y + b * kBlockRows, value(i, b));
    }
  }
}

// The same for blocks whose last columns may not exist, and for every epilogue.
template <int kBlocks, class Value>
void write_rows(const LinearTask& task, int64_t block, int64_t first, int64_t n, const Value& value) {
  if ((block + kBlocks) * kBlockRows <= task.out_cols && task.epilogue != Epilogue::accumulate) {
    if (!task.bias) return write_whole_rows<kBlocks>(task, block, first, n, value);
    const float* bias = task.bias + block * kBlockRows;
    return write_whole_rows<kBlocks>(task, block, first, n,
                                     [&](int64_t i, int b) { return value(i, b) + load(bias + b * kBlockRows); });
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int b = 0; b < kBlocks; ++b) write(task, block + b, first + i, value(i, b));
  }
}

// Output blocks [block, block + kBlocks), or for swiglu the pairs behind kBlocks / 2 of them, of n rows
// from `first` on.
template <Format kFormat, int kBlocks>
void panel_rows(const LinearTask& task, int64_t block, int64_t block_bytes, int64_t first, int64_t n) {
  const bool pairs = task.epilogue == Epilogue::swiglu;
  const uint8_t* w = task.weight.data + (pairs ? 2 : 1) * block * block_bytes;
  const QuantizedRows rows = task.rows.quantized.from(first);
  Sums<kBlocks> sums;
  if constexpr (is_kept(kFormat)) {
    kept_dot<kFormat, kBlocks>(w, block_bytes, task.weight, rows, n, sums);
  } else {
    panel_dot<kFormat, kBlocks>(w, block_bytes, task.weight, rows, n, sums);
  }
  if constexpr (kBlocks > 1) {
    if (pairs) {
      return write_rows<kBlocks / 2>(task, block, first, n, [&](int64_t i, int b) {
        return gated(task, load(sums.v[i][2 * b]), load(sums.v[i][2 * b + 1]));
      });
    }
  }
  write_rows<kBlocks>(task, block, first, n, [&](int64_t i, int b) { return load(sums.v[i][b]); });
}

template <Format kFormat>
void panel_blocks(const LinearTask& task, int64_t begin, int64_t end) {
  const int64_t per = task.epilogue == Epilogue::swiglu ? 2 : 1;
  const int64_t block_bytes = block_nbytes(task.weight.format, task.weight.cols);
  for (int64_t first = 0; first < task.rows.n; first += kLinearPanelRows) {
    const int64_t left = task.rows.n - first, n = left < kLinearPanelRows ? left : kLinearPanelRows;
    for (int64_t block = begin; block < end;) {
      const int64_t weight_blocks = (end - block) * per;
      if (weight_blocks >= kPanelBlocks && kPanelBlocks >= per) {
        panel_rows<kFormat, kPanelBlocks>(task, block, block_bytes, first, n);
        block += kPanelBlocks / per;
      } else if (weight_blocks >= 2) {
        panel_rows<kFormat, 2>(task, block, block_bytes, first, n);
        block += 2 / per;
      } else {
        panel_rows<kFormat, 1>(task, block, block_bytes, first, n);
        block += 1;
      }
    }
  }
}

// Blocks outside, rows inside: a tile's weights stay in cache while all the rows pass.
template <Format kFormat>
void linear_blocks(const LinearTask& task, int64_t begin, int64_t end) {
  const int64_t n = task.rows.n;
  if (n == 0) return;
  if constexpr (is_quantized(kFormat)) {
    if (n > kStreamRows) return panel_blocks<kFormat>(task, begin, end);
  }
  const EvenTiles<kMostRows<kFormat>> tiles(n);
  const int64_t all = tile_blocks<kFormat>(tiles.size(0));
  const int64_t most = task.epilogue == Epilogue::swiglu ? 1 : all;
  for (int64_t block = begin; block < end;) {
    const int64_t n_blocks = end - block >= most ? most : 1;
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      run_tile<kFormat>(task, block, n_blocks, tiles.first(tile), tiles.size(tile));
    }
    block += n_blocks;
  }
}

template <Format kFormat>
struct FormatIs {
  static constexpr Format value = kFormat;
};

// Calls function(FormatIs<format>{}) for a format of matrices that is not kept.
template <class Function>
DEEPMNN_INLINE void with_format(Format format, Function&& function) {
  switch (format) {
    case Format::f32:
      return function(FormatIs<Format::f32>{});
    case Format::bf16:
      return function(FormatIs<Format::bf16>{});
    case Format::w8:
      return function(FormatIs<Format::w8>{});
    case Format::w6:
      return function(FormatIs<Format::w6>{});
    case Format::w5:
      return function(FormatIs<Format::w5>{});
    case Format::w4:
      return function(FormatIs<Format::w4>{});
    case Format::w3:
      return function(FormatIs<Format::w3>{});
    default:
      return;
  }
}

// The same for a kept format. Those of a scheme differ in the columns of a group alone, and have one kernel.
template <class Function>
DEEPMNN_INLINE void with_kept_format(Format format, Function&& function) {
  switch (format) {
    case Format::q8_0:
      return function(FormatIs<Format::q8_0>{});
    case Format::q4_0:
      return function(FormatIs<Format::q4_0>{});
    case Format::q4_1:
      return function(FormatIs<Format::q4_1>{});
    case Format::q5_0:
      return function(FormatIs<Format::q5_0>{});
    case Format::q5_1:
      return function(FormatIs<Format::q5_1>{});
    case Format::q4_k:
      return function(FormatIs<Format::q4_k>{});
    case Format::q5_k:
      return function(FormatIs<Format::q5_k>{});
    case Format::q6_k:
      return function(FormatIs<Format::q6_k>{});
    case Format::mxfp4:
      return function(FormatIs<Format::mxfp4>{});
    default:
      return info_of(format).bits == 4 ? function(FormatIs<Format::int4>{}) : function(FormatIs<Format::int8>{});
  }
}

inline void linear_kernel(const LinearTask& task, int64_t begin, int64_t end) {
  const auto run = [&](auto format) { linear_blocks<format.value>(task, begin, end); };
  is_kept(task.weight.format) ? with_kept_format(task.weight.format, run) : with_format(task.weight.format, run);
}

}  // namespace deepmnn::DEEPMNN_NS
