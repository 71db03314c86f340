// Rows of keys and values: readers of them as float32 vectors, and the tiles of rows that a kernel walks.
#pragma once

#include "kernels/kernels.h"

namespace deepmnn::DEEPMNN_NS {

using AttentionTask = Kernels::AttentionTask;

constexpr int64_t kTileKeys = 64;

// A reader gives columns [d, d + 16) or [d, d + n), n < 16, of what is read of a row that starts at `row`.
struct CacheF32 {
  // What a strip of kAttentionStripCols columns from d on reads.
  static DEEPMNN_INLINE void prefetch_slice(const uint8_t* row, const CacheRows& rows, int64_t d) {
    const uint8_t* at = row + 4 * (rows.column + d);
    for (int i = 0; i < 256; i += 64) prefetch(at + i);
  }
  static DEEPMNN_INLINE F32x16 read(const uint8_t* row, const CacheRows& rows, int64_t d) {
    return load(reinterpret_cast<const float*>(row) + rows.column + d);
  }
  static DEEPMNN_INLINE F32x16 read(const uint8_t* row, const CacheRows& rows, int64_t d, int64_t n) {
    return load(reinterpret_cast<const float*>(row) + rows.column + d, n);
  }
};
struct CacheBf16 {
  static DEEPMNN_INLINE void prefetch_slice(const uint8_t* row, const CacheRows& rows, int64_t d) {
    const uint8_t* at = row + 2 * (rows.column + d);
    for (int i = 0; i < 128; i += 64) prefetch(at + i);
  }
  static DEEPMNN_INLINE F32x16 read(const uint8_t* row, const CacheRows& rows, int64_t d) {
    return load_bf16(reinterpret_cast<const uint16_t*>(row) + rows.column + d);
  }
  static DEEPMNN_INLINE F32x16 read(const uint8_t* row, const CacheRows& rows, int64_t d, int64_t n) {
    return load_bf16(reinterpret_cast<const uint16_t*>(row) + rows.column + d, n);
  }
};

// Keys of this run that query i sees.
DEEPMNN_INLINE int64_t visible_keys(const AttentionTask& task, int64_t i) {
  const int64_t limit = task.limits[i];
  return limit < 0 ? 0 : (limit < task.n_keys ? limit : task.n_keys);
}

// Numbers of the cache rows that hold keys [key, key + n) of the run.
DEEPMNN_INLINE void locate_rows(const AttentionTask& task, int64_t key, int64_t n, int64_t* numbers) {
  int64_t at = task.first_key + key;
  if (!task.table) {
    for (int64_t i = 0; i < n; ++i) numbers[i] = at + i;
    return;
  }
  if (task.block_size == 1) {  // rows that were chosen one by one
    for (int64_t i = 0; i < n; ++i) numbers[i] = task.table[at + i];
    return;
  }
  for (int64_t i = 0; i < n;) {
    const int64_t inside = at % task.block_size, left = task.block_size - inside;
    const int64_t first = task.table[at / task.block_size] * task.block_size + inside;
    const int64_t end = i + left < n ? i + left : n;
    at += end - i;
    for (int64_t k = 0; i < end; ++i, ++k) numbers[i] = first + k;
  }
}

}  // namespace deepmnn::DEEPMNN_NS
