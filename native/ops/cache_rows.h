// One row of a cache entry: where it lies, and its conversion to and from float32.
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
  return {step.cache.data(entry), step.cache.row_nbytes(entry), column};
}

inline void store_row(const Step& step, const float* x, int64_t n, uint8_t* to) {
  if (step.cache.type() == CacheType::bf16) {
    step.kernels.to_bf16(x, n, reinterpret_cast<uint16_t*>(to));
  } else {
    std::memcpy(to, x, static_cast<size_t>(n) * 4);
  }
}

inline void load_row(const Step& step, const uint8_t* from, int64_t n, float* y) {
  if (step.cache.type() == CacheType::f32) {
    std::memcpy(y, from, static_cast<size_t>(n) * 4);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint16_t half;
    std::memcpy(&half, from + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(y + i, &bits, 4);
  }
}

}  // namespace deepmnn
