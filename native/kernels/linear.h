// y = W x for a range of output blocks: walks tiles of blocks x input rows and writes them through the epilogue.
#pragma once

#include "kernels/dot.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// Output blocks per tile when there is one input row: floats need several to hide the latency of an addition; integer
// sums are exact, so one block has accumulators of its own, and reading is fastest along one stream.
template <DType kDType>
constexpr int kSingleBlocks = kDType == DType::f32 || kDType == DType::bf16 ? 4 : 1;

DEEPMNN_INLINE int64_t group_count(const Weight& weight) {
  return weight.group_size ? (weight.cols + weight.group_size - 1) / weight.group_size : 0;
}

// The task's input row i.
template <DType kDType>
DEEPMNN_INLINE Row input_row(const LinearTask& task, int64_t i) {
  const Rows& rows = task.rows;
  const int64_t at = rows.index ? rows.index[i] : i;
  if constexpr (kDType == DType::f32 || kDType == DType::bf16) {
    return {rows.x + at * rows.stride, nullptr, nullptr, nullptr};
  } else {
    const int64_t groups = group_count(task.weight), first = at * groups;
    return {nullptr, rows.codes + first * task.weight.group_size, rows.scales + first, rows.sums + first};
  }
}

// Writes 16 columns, or those that exist, of output block `block` of row i.
DEEPMNN_INLINE void write(const LinearTask& task, int64_t block, int64_t i, F32x16 value) {
  const int64_t column = block * kBlockRows, left = task.out_cols - column;
  const int64_t n = left < kBlockRows ? left : kBlockRows;
  if (n <= 0) return;
  float* y = task.y + i * task.y_stride + column;
  if (task.epilogue == Epilogue::accumulate) value = value + load(y, n);
  if (task.epilogue == Epilogue::store && task.bias) value = value + load(task.bias + column, n);
  store(y, value, n);
}

// Output blocks [block, block + kBlocks) of input rows [i, i + kRows).
template <DType kDType, int kBlocks, int kRows>
void plain_tile(const LinearTask& task, int64_t block, int64_t i) {
  const int64_t block_bytes = block_nbytes(kDType, task.weight.cols, task.weight.group_size);
  Row rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = input_row<kDType>(task, i + r);
  Tile<kBlocks, kRows> out;
  dot<kDType>(task.weight.data + block * block_bytes, block_bytes, task.weight, rows, out);
  DEEPMNN_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    DEEPMNN_UNROLL
    for (int r = 0; r < kRows; ++r) write(task, block + b, i + r, out.v[b][r]);
  }
}

// Output block `block` of input rows [i, i + kRows): weight block 2 * block is its gate, the next one its up.
template <DType kDType, int kRows>
void swiglu_tile(const LinearTask& task, int64_t block, int64_t i) {
  const int64_t block_bytes = block_nbytes(kDType, task.weight.cols, task.weight.group_size);
  const uint8_t* w = task.weight.data + 2 * block * block_bytes;
  Row rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = input_row<kDType>(task, i + r);
  Tile<2, kRows> out;
  if constexpr (kRows == 1 ? kSingleBlocks<kDType> > 1 : kTileBlocks == 2) {
    dot<kDType>(w, block_bytes, task.weight, rows, out);
  } else {
    Tile<1, kRows> half;
    DEEPMNN_UNROLL
    for (int b = 0; b < 2; ++b) {
      dot<kDType>(w + b * block_bytes, block_bytes, task.weight, rows, half);
      DEEPMNN_UNROLL
      for (int r = 0; r < kRows; ++r) out.v[b][r] = half.v[0][r];
    }
  }
  DEEPMNN_UNROLL
  for (int r = 0; r < kRows; ++r) write(task, block, i + r, silu(out.v[0][r]) * out.v[1][r]);
}

// The tile with exactly n_rows (1 .. kRows) rows and n_blocks blocks: 1, kTileBlocks or, for one row,
// kSingleBlocks.
template <DType kDType, int kRows>
void run_tile(const LinearTask& task, int64_t block, int64_t n_blocks, int64_t i, int64_t n_rows) {
  if constexpr (kRows > 1) {
    if (n_rows < kRows) return run_tile<kDType, kRows - 1>(task, block, n_blocks, i, n_rows);
  }
  if (task.epilogue == Epilogue::swiglu) return swiglu_tile<kDType, kRows>(task, block, i);
  if (n_blocks == 1) return plain_tile<kDType, 1, kRows>(task, block, i);
  if constexpr (kRows == 1) {
    if (n_blocks == kSingleBlocks<kDType>) return plain_tile<kDType, kSingleBlocks<kDType>, 1>(task, block, i);
  }
  plain_tile<kDType, kTileBlocks, kRows>(task, block, i);
}

// Blocks outside, rows inside: a tile's weights stay in cache while all the rows pass.
template <DType kDType>
void linear_blocks(const LinearTask& task, int64_t begin, int64_t end) {
  const int64_t n = task.rows.n;
  const int64_t most = task.epilogue == Epilogue::swiglu ? 1 : n == 1 ? kSingleBlocks<kDType> : kTileBlocks;
  for (int64_t block = begin; block < end;) {
    const int64_t n_blocks = end - block >= most ? most : 1;
    for (int64_t i = 0; i < n;) {
      const int64_t tiles = (n - i + kTileRows - 1) / kTileRows, n_rows = (n - i + tiles - 1) / tiles;
      run_tile<kDType, kTileRows>(task, block, n_blocks, i, n_rows);
      i += n_rows;
    }
    block += n_blocks;
  }
}

inline void linear_kernel(const LinearTask& task, int64_t begin, int64_t end) {
  switch (task.weight.dtype) {
    case DType::f32:
      return linear_blocks<DType::f32>(task, begin, end);
    case DType::bf16:
      return linear_blocks<DType::bf16>(task, begin, end);
    case DType::w8:
      return linear_blocks<DType::w8>(task, begin, end);
    case DType::w4:
      return linear_blocks<DType::w4>(task, begin, end);
    case DType::vector:
      return;  // not a matrix
  }
}

}  // namespace deepmnn::DEEPMNN_NS
