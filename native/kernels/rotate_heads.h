// Rotations of the heads of an int8 cache (docs/layouts.md, "Rows of the KV cache"), in blocks of kBlock columns. Where
// these do not fill a head, one more lies over its last columns.
#pragma once

#include "kernels/rotation.h"

namespace deepmnn::DEEPMNN_NS {

template <int kBlock>
DEEPMNN_INLINE void rotate_head(float* x, int64_t d) {
  const auto rotate = [x](int64_t at) { rotate_block<kBlock / 16>(x + at, kBlock, kSignTable.v, x + at); };
  for (int64_t at = 0; at + kBlock <= d; at += kBlock) rotate(at);
  if (d % kBlock) rotate(d - kBlock);
}

template <int kBlock>
DEEPMNN_INLINE void unrotate_head(float* x, int64_t d) {
  const auto unrotate = [x](int64_t at) { unrotate_block<kBlock / 16>(x + at, kSignTable.v); };
  if (d % kBlock) unrotate(d - kBlock);
  for (int64_t at = 0; at + kBlock <= d; at += kBlock) unrotate(at);
}

inline void rotate_heads_kernel(float* x, int64_t heads, int64_t d) {
  if (d % kCacheGroup == 0) {
    rotate_head<kCacheGroup>(x, heads * d);  // blocks do not know where a head ends
  } else if (d >= kPartCols) {
    for (int64_t head = 0; head < heads; ++head) rotate_head<kPartCols>(x + head * d, d);
  }
}

inline void unrotate_heads_kernel(float* x, int64_t heads, int64_t d) {
  if (d % kCacheGroup == 0) {
    unrotate_head<kCacheGroup>(x, heads * d);
  } else if (d >= kPartCols) {
    for (int64_t head = 0; head < heads; ++head) unrotate_head<kPartCols>(x + head * d, d);
  }
}

}  // namespace deepmnn::DEEPMNN_NS
