// Scores of an indexer (docs/ops.md, select_keys): how much each key matters to a token, as a weighted sum over light
// heads. 16 keys are the lanes of a vector: they are transposed once and pass all heads of all tokens, whose numbers
// are broadcast against them. Nothing is summed across lanes, and a score does not depend on the keys and tokens beside
// it. An int8 cache is multiplied as integers, as attention over it is.
#pragma once

#include "kernels/attention_cache.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

using IndexTask = Kernels::IndexTask;

// Heads of a register tile, beside a vector of keys and a number of a query.
constexpr int kIndexHeads = kVectorRegisters >= 32 ? 12 : 6;
constexpr int kIndexInt8Heads = kVectorRegisters >= 32 ? 12 : 4;

DEEPMNN_INLINE int64_t index_groups(int64_t dim) { return (dim + kCacheGroup - 1) / kCacheGroup; }

// Rows of keys [key, key + 16); past the end the last key's.
inline void locate_keys(const IndexTask& task, int64_t key, const uint8_t* (&rows)[16]) {
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t j = task.first_key + (key + i < task.n_keys ? key + i : task.n_keys - 1);
    int64_t row = j * task.ratio + task.ratio - 1;
    if (task.table) row = task.table[row / task.block_size] * task.block_size + row % task.block_size;
    rows[i] = task.k.data + row * task.k.row_nbytes;
  }
}

// keys [dim padded to 16][16]
template <class Cache>
void transpose_keys(const IndexTask& task, const uint8_t* const (&rows)[16], float* keys) {
  for (int64_t d = 0; d < task.dim; d += 16, keys += 256) {
    const int64_t n = task.dim - d < 16 ? task.dim - d : 16;
    F32x16 x[16];
    for (int i = 0; i < 16; ++i) x[i] = n == 16 ? Cache::read(rows[i], task.k, d) : Cache::read(rows[i], task.k, d, n);
    transpose(x);
    DEEPMNN_UNROLL
    for (int i = 0; i < 16; ++i) store(keys + 16 * i, x[i]);
  }
}

// max(0, x); this order keeps NaN, which is chosen last.
DEEPMNN_INLINE F32x16 positive(F32x16 x) { return max(splat(0.0f), x); }

// score + what kHeads heads of a token add to it.
template <int kHeads>
DEEPMNN_INLINE F32x16 add_heads(const float* q, const float* weights, int64_t dim, const float* keys, F32x16 score) {
  F32x16 acc[kHeads];
  DEEPMNN_UNROLL
  for (int h = 0; h < kHeads; ++h) acc[h] = splat(0.0f);
  for (int64_t d = 0; d < dim; ++d, keys += 16) {
    const F32x16 key = load(keys);
    DEEPMNN_UNROLL
    for (int h = 0; h < kHeads; ++h) acc[h] = fma(splat(q[h * dim + d]), key, acc[h]);
  }
  DEEPMNN_UNROLL
  for (int h = 0; h < kHeads; ++h) score = fma(splat(weights[h]), positive(acc[h]), score);
  return score;
}

// Calls function(first key of 16, their rows) and then each(token, where its 16 scores go) for tokens that see them.
template <class Function, class Each>
DEEPMNN_INLINE void for_keys(const IndexTask& task, Function&& function, Each&& each) {
  for (int64_t key = 0; key < task.n_keys; key += 16) {
    const uint8_t* rows[16];
    locate_keys(task, key, rows);
    function(rows);
    for (int64_t t = 0; t < task.tokens; ++t) {
      if (task.limits[t] > task.first_key + key) each(t, task.out + t * task.out_stride + key);
    }
  }
}

template <class Cache>
void index_float_scores(const IndexTask& task) {
  const EvenTiles<kIndexHeads> tiles(task.heads);
  for_keys(
      task, [&](const uint8_t* const(&rows)[16]) { transpose_keys<Cache>(task, rows, task.work); },
      [&](int64_t t, float* out) {
        const float *q = task.q + t * task.heads * task.dim, *weights = task.weights + t * task.heads;
        F32x16 score = splat(0.0f);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
          const int64_t first = tiles.first(tile);
          with_count<1, kIndexHeads>(tiles.size(tile), [&](auto heads) {
            score = add_heads<heads.value>(q + first * task.dim, weights + first, task.dim, task.work, score);
          });
        }
        store(out, score);
      });
}

DEEPMNN_INLINE I32x16 splat_codes(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return splat_i32(four);
}

// keys [groups][fours of columns][16][4], then their scales [groups][16].
inline void transpose_codes(const IndexTask& task, const uint8_t* const (&rows)[16], uint8_t* keys, float* scales) {
  for (int64_t g = 0; g < index_groups(task.dim); ++g) {
    const int64_t left = task.dim - g * kCacheGroup, n = left < kCacheGroup ? left : kCacheGroup;
    F32x16 x[16];
    for (int i = 0; i < 16; ++i) {
      int8_t room[kCacheGroup] = {};
      const uint8_t* from = rows[i] + g * kCacheGroup;
      if (n < kCacheGroup) {
        __builtin_memcpy(room, from, static_cast<uint64_t>(n));
        x[i] = from_bits(load_i32(room));
      } else {
        x[i] = from_bits(load_i32(from));
      }
      __builtin_memcpy(scales + 16 * g + i, rows[i] + task.k.scales + 4 * g, sizeof(float));
    }
    transpose(x);
    DEEPMNN_UNROLL
    for (int i = 0; i < 16; ++i, keys += 64) store_u8(keys, key_codes(bits(x[i])));
  }
}

// The same of an int8 cache: exact sums of products of codes in each group of columns, times both scales.
template <int kHeads>
DEEPMNN_INLINE F32x16 add_int8_heads(const int8_t* q, const float* q_scales, const int32_t* sums, const float* weights,
                                     int64_t groups, const uint8_t* keys, const float* scales, F32x16 score) {
  constexpr int kFours = kCacheGroup / 4;
  F32x16 total[kHeads];
  DEEPMNN_UNROLL
  for (int h = 0; h < kHeads; ++h) total[h] = splat(0.0f);
  for (int64_t g = 0; g < groups; ++g, q += kCacheGroup, scales += 16) {
    I32x16 acc[kHeads];
    DEEPMNN_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      acc[h] = splat_i32(kKeyBiased ? -128 * sums[h * groups + g] : 0);
    }
    for (int four = 0; four < kFours; ++four, keys += 64) {
      const U8x64 key = load_u8(keys);
      DEEPMNN_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        acc[h] = dot_key(acc[h], key, splat_codes(q + h * groups * kCacheGroup + 4 * four));
      }
    }
    DEEPMNN_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      total[h] = fma(to_float(acc[h]), load(scales) * splat(q_scales[h * groups + g]), total[h]);
    }
  }
  DEEPMNN_UNROLL
  for (int h = 0; h < kHeads; ++h) score = fma(splat(weights[h]), positive(total[h]), score);
  return score;
}

inline void index_int8_scores(const IndexTask& task) {
  const EvenTiles<kIndexInt8Heads> tiles(task.heads);
  const int64_t groups = index_groups(task.dim);
  uint8_t* const keys = reinterpret_cast<uint8_t*>(task.work);
  float* const scales = task.work + groups * 16 * kCacheGroup / 4;
  for_keys(
      task, [&](const uint8_t* const(&rows)[16]) { transpose_codes(task, rows, keys, scales); },
      [&](int64_t t, float* out) {
        const int8_t* codes = task.codes + t * task.heads * groups * kCacheGroup;
        const float *q_scales = task.scales + t * task.heads * groups, *weights = task.weights + t * task.heads;
        const int32_t* sums = task.sums + t * task.heads * groups;
        F32x16 score = splat(0.0f);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
          const int64_t first = tiles.first(tile);
          with_count<1, kIndexInt8Heads>(tiles.size(tile), [&](auto heads) {
            score = add_int8_heads<heads.value>(codes + first * groups * kCacheGroup, q_scales + first * groups,
                                                sums + first * groups, weights + first, groups, keys, scales, score);
          });
        }
        store(out, score);
      });
}

inline void index_scores_kernel(const IndexTask& task) {
  switch (task.type) {
    case CacheType::f32:
      return index_float_scores<CacheF32>(task);
    case CacheType::bf16:
      return index_float_scores<CacheBf16>(task);
    case CacheType::int8:
      return index_int8_scores(task);
  }
}

}  // namespace deepmnn::DEEPMNN_NS
