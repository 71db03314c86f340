// One row of a cache entry: where it lies, and its conversion to and from float32. Heads of int8 rows are rotated: who
// stores a row or multiplies it by queries rotates these first, who loads a row rotates it back.
#pragma once

#include <cstring>

#include "runtime/step.h"

namespace deepmnn {

// Row `slot` of a cache entry's pool.
inline uint8_t* cache_row(const Step& step, size_t entry, int64_t slot) {
  return step.cache.data(entry) + slot * step.cache.row_nbytes(entry);
}

// Columns from `column` on of an entry's rows.
inline CacheRows cache_rows(const Step& step, size_t entry, int64_t column) {
  const KvCache& cache = step.cache;
  const CacheType type = cache.type(entry);
  if (type != CacheType::int8) {
    return {cache.data(entry) + column * (type == CacheType::bf16 ? 2 : 4), cache.row_nbytes(entry)};
  }
  return {cache.data(entry), cache.row_nbytes(entry), column, cache.scales_offset(entry)};
}

// x [heads, d] of a row or of queries, in place, as rows of this cache hold them, and back. One row may consist of
// pieces with heads of different sizes.
inline void rotate_heads(const Step& step, float* x, int64_t heads, int64_t d) {
  if (step.cache.type() == CacheType::int8) step.kernels.rotate_heads(x, heads, d);
}
inline void unrotate_heads(const Step& step, float* x, int64_t heads, int64_t d) {
  if (step.cache.type() == CacheType::int8) step.kernels.unrotate_heads(x, heads, d);
}

// x [width of the entry] to its row `slot`.
inline void store_row(const Step& step, const float* x, int64_t n, size_t entry, int64_t slot) {
  uint8_t* to = cache_row(step, entry, slot);
  const CacheType type = step.cache.type(entry);
  if (type == CacheType::f32) {
    std::memcpy(to, x, static_cast<size_t>(n) * 4);
  } else if (type == CacheType::bf16) {
    step.kernels.to_bf16(x, n, reinterpret_cast<uint16_t*>(to));
  } else {
    float* scales = reinterpret_cast<float*>(to + step.cache.scales_offset(entry));
    step.kernels.quantize_cache(x, n, reinterpret_cast<int8_t*>(to), scales);
  }
}

inline void load_row(const Step& step, size_t entry, int64_t slot, int64_t n, float* y) {
  const uint8_t* from = cache_row(step, entry, slot);
  const CacheType type = step.cache.type(entry);
  if (type == CacheType::f32) {
    std::memcpy(y, from, static_cast<size_t>(n) * 4);
  } else if (type == CacheType::bf16) {
    for (int64_t i = 0; i < n; ++i) {
      uint16_t half;
      std::memcpy(&half, from + 2 * i, 2);
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(y + i, &bits, 4);
    }
  } else {
    const float* scales = reinterpret_cast<const float*>(from + step.cache.scales_offset(entry));
    for (int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<float>(static_cast<int8_t>(from[i])) * scales[i / kCacheGroup];
    }
  }
}

}  // namespace deepmnn
