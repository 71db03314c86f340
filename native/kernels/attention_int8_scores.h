// Scores of queries against keys of an int8 cache. 16 keys are the lanes of a vector, each with four columns: the codes
// of a group are transposed once, and every query is broadcast against them.
#pragma once

#include "kernels/attention_int8_tile.h"
#include "kernels/quantize_rows.h"

namespace deepmnn::DEEPMNN_NS {

constexpr int kFours = kCacheGroup / 4;
constexpr int kFourStep = 4;  // fours of columns of straight code

// As inverse_of(float).
DEEPMNN_INLINE F32x16 inverse_of(F32x16 steps) {
  const F32x16 zero = splat(0.0f), finite = select_less(steps, splat(__builtin_inff()), splat(1.0f) / steps, zero);
  return select_less(steps, splat(1.17549435e-38f), zero, finite);
}

// Group g of all queries.
inline void pack_queries(const AttentionTask& task, const Int8Strips& strips, int64_t g) {
  const Groups& groups = strips.keys;
  // Columns of a query that lie in this group, and where.
  const int64_t before = g == 0 ? groups.shift : 0, n = groups.cols(g) - before;
  const float* q = task.q + g * kCacheGroup + before - groups.shift;
  const int64_t stride = strips.lanes.queries;
  alignas(64) float room[16][kCacheGroup] = {}, columns[kCacheGroup][16];
  for (int64_t first = 0; first < task.n_queries; first += 16) {
    const float* x[16];
    for (int64_t i = 0; i < 16; ++i) {
      x[i] = room[i];
      const float* from = q + (first + i) * task.q_stride;
      if (first + i >= task.n_queries) {
        __builtin_memset(room[i], 0, sizeof(room[i]));
      } else if (n < kCacheGroup) {
        __builtin_memcpy(room[i] + before, from, static_cast<uint64_t>(n) * sizeof(float));
      } else {
        x[i] = from;
      }
    }
    I32x16 top = splat_i32(0);  // magnitudes compare like their bits
    for (int64_t d = 0; d < kCacheGroup; d += 16) {
      F32x16 rows[16];
      DEEPMNN_UNROLL
      for (int i = 0; i < 16; ++i) rows[i] = load(x[i] + d);
      transpose(rows);
      DEEPMNN_UNROLL
      for (int i = 0; i < 16; ++i) {
        store(columns[d + i], rows[i]);
        top = max(top, bits(rows[i]) & splat_i32(0x7fffffff));
      }
    }
    const F32x16 step = from_bits(top) / splat(127.0f), inverse = inverse_of(step), zero = splat(0.0f);
    // A code is 0 where the inverse is: infinity times it is no number.
    const I32x16 keep = bits(select_less(zero, inverse, from_bits(splat_i32(-1)), zero));
    I32x16 sums = splat_i32(0);
    int8_t* to = strips.q + (g * kFours * stride + first) * 4;
    for (int four = 0; four < kFours; ++four, to += 4 * stride) {
      I32x16 packed = splat_i32(0);
      DEEPMNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const I32x16 code = to_int(load(columns[4 * four + i]) * inverse) & keep;
        sums = sums + code;
        packed = packed + shift_left(code & splat_i32(0xff), 8 * i);
      }
      store_i32(to, packed);
    }
    store(strips.q_scales + g * stride + first, step * splat(task.scale));
    store_i32(strips.q_start + g * stride + first, kKeyBiased ? splat_i32(0) - shift_left(sums, 7) : splat_i32(0));
  }
}

// Group g of the tile's keys, then of its first key again up to whole vectors.
inline void fill_keys(const KeyTile& tile, int64_t g, const Int8Strips& strips) {
  uint8_t* to = strips.k;
  for (int64_t key = 0; key < tile.n; key += 16) {
    int8_t room[kCacheGroup];
    F32x16 rows[16];
    DEEPMNN_UNROLL
    for (int i = 0; i < 16; ++i) {
      const int64_t j = key + i < tile.n ? key + i : 0;
      rows[i] = from_bits(load_i32(strips.keys.codes(tile.k[j], g, room)));
    }
    transpose(rows);
    DEEPMNN_UNROLL
    for (int i = 0; i < kFours; ++i, to += 64) store_u8(to, key_codes(bits(rows[i])));
  }
}

// Adds group g of the scores of kQueries queries from `first` on and 16 * kVectors keys from `key` on.
template <int kQueries, int kVectors>
DEEPMNN_INLINE void add_score_tile(const Int8Strips& strips, int64_t first, int64_t g, int64_t key) {
  const int64_t stride = strips.lanes.queries, at = g * stride + first;
  const int8_t* q = strips.q + (g * kFours * stride + first) * 4;
  const uint8_t* k = strips.k + key * kCacheGroup;
  I32x16 acc[kQueries][kVectors];
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const I32x16 start = splat_i32(strips.q_start[at + i]);
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) acc[i][c] = start;
  }
  for (int four = 0; four < kFours; four += kFourStep, k += 64 * kFourStep) {
    DEEPMNN_UNROLL
    for (int s = 0; s < kFourStep; ++s, q += 4 * stride) {
      __asm__ volatile("" : : : "memory");  // a load far ahead of its use would cost a sum its register
      U8x64 keys[kVectors];
      DEEPMNN_UNROLL
      for (int c = 0; c < kVectors; ++c) keys[c] = load_u8(k + 16 * c * kCacheGroup + 64 * s);
      DEEPMNN_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const I32x16 query = splat_four(q + 4 * i);
        DEEPMNN_UNROLL
        for (int c = 0; c < kVectors; ++c) acc[i][c] = dot_key(acc[i][c], keys[c], query);
      }
    }
  }
  F32x16 scales[kVectors];
  DEEPMNN_UNROLL
  for (int c = 0; c < kVectors; ++c) scales[c] = load(strips.k_scales + g * kInt8Keys + key + 16 * c);
  float* to = strips.lanes.weights + first * kInt8Keys + key;
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const F32x16 scale = splat(strips.q_scales[at + i]);
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) {
      float* score = to + i * kInt8Keys + 16 * c;
      const F32x16 before = g == 0 ? splat(0.0f) : load(score);
      store(score, fma(to_float(acc[i][c]), scales[c] * scale, before));
    }
  }
}

// The same for the tile's first keys; what it adds to those after them is nothing's.
template <int kQueries>
void add_scores(const Int8Strips& strips, int64_t first, int64_t g, int64_t keys) {
  constexpr int kHalf = kInt8Vectors > 1 ? kInt8Vectors / 2 : 1;
  int64_t key = 0;
  for (; keys - key > 16 * (kInt8Vectors - kHalf); key += 16 * kInt8Vectors) {
    add_score_tile<kQueries, kInt8Vectors>(strips, first, g, key);
  }
  if (key < keys) add_score_tile<kQueries, kHalf>(strips, first, g, key);
}

}  // namespace deepmnn::DEEPMNN_NS
