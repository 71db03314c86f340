// Flash-style attention (Dao et al., 2022): queries against one run of cache rows, tile by tile. A query carries its
// running maximum m and sum s between runs: acc and s are those of exp(score - m), so a new maximum rescales both.
// Nothing here depends on what a query is: a head of a GQA group or of MLA (expanded or absorbed), of any token.
#pragma once

#include "kernels/kernels.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

constexpr int64_t kTileQueries = 4;
constexpr int64_t kTileKeys = 64;

using AttentionTask = Kernels::AttentionTask;

struct CacheF32 {
  using Element = float;
  static DEEPMNN_INLINE F32x16 read(const float* p) { return load(p); }
  static DEEPMNN_INLINE F32x16 read(const float* p, int64_t n) { return load(p, n); }
};
struct CacheBf16 {
  using Element = uint16_t;
  static DEEPMNN_INLINE F32x16 read(const uint16_t* p) { return load_bf16(p); }
  static DEEPMNN_INLINE F32x16 read(const uint16_t* p, int64_t n) { return load_bf16(p, n); }
};

// Keys of this run that query i sees.
DEEPMNN_INLINE int64_t visible_keys(const AttentionTask& task, int64_t i) {
  const int64_t limit = task.limits[i];
  return limit < 0 ? 0 : (limit < task.n_keys ? limit : task.n_keys);
}

// scores[q][key] of kQueries queries and 16 / kQueries keys: 16 dot products, summed across lanes in one go.
template <class Cache, int kQueries>
DEEPMNN_INLINE void score_tile(const AttentionTask& task, const float* q, const typename Cache::Element* const* keys,
                               float* const* scores) {
  constexpr int kKeys = 16 / kQueries;
  F32x16 acc[16];
  DEEPMNN_UNROLL
  for (int i = 0; i < 16; ++i) acc[i] = splat(0.0f);
  int64_t d = 0;
  for (; d + 16 <= task.qk_dim; d += 16) {
    F32x16 query[kQueries];
    DEEPMNN_UNROLL
    for (int i = 0; i < kQueries; ++i) query[i] = load(q + i * task.q_stride + d);
    DEEPMNN_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const F32x16 key = Cache::read(keys[k] + d);
      DEEPMNN_UNROLL
      for (int i = 0; i < kQueries; ++i) acc[i * kKeys + k] = fma(query[i], key, acc[i * kKeys + k]);
    }
  }
  if (const int64_t left = task.qk_dim - d; left > 0) {
    DEEPMNN_UNROLL
    for (int k = 0; k < kKeys; ++k) {
      const F32x16 key = Cache::read(keys[k] + d, left);
      DEEPMNN_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        acc[i * kKeys + k] = fma(load(q + i * task.q_stride + d, left), key, acc[i * kKeys + k]);
      }
    }
  }
  float out[16];
  store(out, sums(acc) * splat(task.scale));
  for (int i = 0; i < kQueries; ++i) __builtin_memcpy(scores[i], out + i * kKeys, kKeys * sizeof(float));
}

// Turns a query's n scores (padded to whole vectors) into weights exp(score - maximum); updates maximum and sum and
// returns the factor that the old accumulator gets.
DEEPMNN_INLINE float update_softmax(float* scores, int64_t n, float* max_sum) {
  if (n == 0) return 1.0f;
  const F32x16 lowest = splat(-__builtin_inff());
  const int64_t padded = (n + 15) / 16 * 16;
  for (int64_t k = n; k < padded; ++k) scores[k] = -__builtin_inff();
  F32x16 top = lowest;
  for (int64_t k = 0; k < padded; k += 16) top = max(top, load(scores + k));
  const float found = max_lane(top), old = max_sum[0], maximum = found > old ? found : old;
  F32x16 total = splat(0.0f);
  for (int64_t k = 0; k < padded; k += 16) {
    const F32x16 weight = exp(load(scores + k) - splat(maximum));
    store(scores + k, weight);
    total = total + weight;
  }
  float factor = 0.0f;
  if (max_sum[1] != 0.0f) {
    float lanes[16];
    store(lanes, exp(splat(old - maximum)));
    factor = lanes[0];
  }
  max_sum[0] = maximum;
  max_sum[1] = max_sum[1] * factor + sum(total);
  return factor;
}

// kVectors * 16 columns of the output from column d on: acc = acc * factor + sum over keys of weight * value.
template <class Cache, int kQueries, int kVectors>
DEEPMNN_INLINE void value_tile(const AttentionTask& task, int64_t first_key, int64_t n_keys, int64_t d, int64_t lanes,
                               const float (*weights)[kTileKeys], const float* factors, float* acc) {
  F32x16 out[kQueries][kVectors];
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) {
      const float* from = acc + i * task.v_dim + d + c * 16;
      // Not a product with 0: what the accumulator holds before the first key is nobody's.
      out[i][c] = factors[i] == 0.0f ? splat(0.0f) : (lanes == 16 ? load(from) : load(from, lanes)) * splat(factors[i]);
    }
  }
  const auto* v = static_cast<const typename Cache::Element*>(task.v) + first_key * task.v_stride + d;
  for (int64_t k = 0; k < n_keys; ++k, v += task.v_stride) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) {
      const F32x16 value = lanes == 16 ? Cache::read(v + c * 16) : Cache::read(v, lanes);
      DEEPMNN_UNROLL
      for (int i = 0; i < kQueries; ++i) out[i][c] = fma(splat(weights[i][k]), value, out[i][c]);
    }
  }
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) store(acc + i * task.v_dim + d + c * 16, out[i][c], lanes);
  }
}

// kQueries queries from `query` on against the keys [first_key, first_key + at most kTileKeys).
template <class Cache, int kQueries>
void attention_tile(const AttentionTask& task, int64_t query, int64_t first_key) {
  constexpr int kKeys = 16 / kQueries;
  int64_t seen[kQueries], most = 0;  // keys of this tile that each query sees
  for (int i = 0; i < kQueries; ++i) {
    const int64_t n = visible_keys(task, query + i) - first_key;
    seen[i] = n < 0 ? 0 : (n < kTileKeys ? n : kTileKeys);
    most = seen[i] > most ? seen[i] : most;
  }
  if (most == 0) return;
  float weights[kQueries][kTileKeys];
  const auto* k = static_cast<const typename Cache::Element*>(task.k);
  for (int64_t key = 0; key < most; key += kKeys) {
    const typename Cache::Element* keys[kKeys];
    float* scores[kQueries];
    for (int j = 0; j < kKeys; ++j) {  // past the end the last key stands in; its score is not used
      keys[j] = k + (first_key + (key + j < most ? key + j : most - 1)) * task.k_stride;
    }
    for (int i = 0; i < kQueries; ++i) scores[i] = weights[i] + key;
    score_tile<Cache, kQueries>(task, task.q + query * task.q_stride, keys, scores);
  }
  float factors[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    factors[i] = update_softmax(weights[i], seen[i], task.max_sum + 2 * (query + i));
    for (int64_t j = seen[i]; j < most; ++j) weights[i][j] = 0.0f;
  }
  float* acc = task.acc + query * task.v_dim;
  constexpr int kVectors = kTileBlocks * 2;
  int64_t d = 0;
  for (; d + 16 * kVectors <= task.v_dim; d += 16 * kVectors) {
    value_tile<Cache, kQueries, kVectors>(task, first_key, most, d, 16, weights, factors, acc);
  }
  for (; d < task.v_dim; d += 16) {
    const int64_t lanes = task.v_dim - d < 16 ? task.v_dim - d : 16;
    value_tile<Cache, kQueries, 1>(task, first_key, most, d, lanes, weights, factors, acc);
  }
}

// Keys outside, queries inside: a tile of keys and values stays in cache while all the queries pass.
template <class Cache>
void attention_run(const AttentionTask& task) {
  for (int64_t key = 0; key < task.n_keys; key += kTileKeys) {
    int64_t query = 0;
    for (; query + kTileQueries <= task.n_queries; query += kTileQueries) {
      attention_tile<Cache, kTileQueries>(task, query, key);
    }
    for (; query + 2 <= task.n_queries; query += 2) attention_tile<Cache, 2>(task, query, key);
    for (; query < task.n_queries; ++query) attention_tile<Cache, 1>(task, query, key);
  }
}

inline void attention_kernel(const AttentionTask& task) {
  task.bf16 ? attention_run<CacheBf16>(task) : attention_run<CacheF32>(task);
}

}  // namespace deepmnn::DEEPMNN_NS
