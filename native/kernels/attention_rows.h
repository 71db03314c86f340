// Attention for few queries: keys and values are read from the cache's rows as they lie. A score is a dot product
// summed across lanes at its end; the queries of one pass share every vector that is read and converted.
#pragma once

#include "kernels/attention_cache.h"
#include "kernels/math.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

// Queries of one pass, so that a pass fits the registers.
constexpr int kFewQueries = kVectorRegisters >= 32 ? 8 : 4;

struct TileRows {
  const uint8_t* k[kTileKeys];
  const uint8_t* v[kTileKeys];
};

// acc[i * kKeys + j] += query i times key j, lane by lane, over all columns.
template <class Cache, int kQueries, int kKeys, int kStride>
DEEPMNN_INLINE void multiply_keys(const AttentionTask& task, const float* q, const uint8_t* const* keys, F32x16* to) {
  F32x16 acc[kQueries][kKeys];
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    DEEPMNN_UNROLL
    for (int j = 0; j < kKeys; ++j) acc[i][j] = splat(0.0f);
  }
  int64_t d = 0;
  for (; d + 16 <= task.qk_dim; d += 16) {
    F32x16 key[kKeys];
    DEEPMNN_UNROLL
    for (int j = 0; j < kKeys; ++j) key[j] = Cache::read(keys[j], task.k, d);
    DEEPMNN_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const F32x16 query = load(q + i * task.q_stride + d);
      DEEPMNN_UNROLL
      for (int j = 0; j < kKeys; ++j) acc[i][j] = fma(query, key[j], acc[i][j]);
    }
  }
  if (const int64_t left = task.qk_dim - d; left > 0) {
    DEEPMNN_UNROLL
    for (int j = 0; j < kKeys; ++j) {
      const F32x16 key = Cache::read(keys[j], task.k, d, left);
      DEEPMNN_UNROLL
      for (int i = 0; i < kQueries; ++i) acc[i][j] = fma(load(q + i * task.q_stride + d, left), key, acc[i][j]);
    }
  }
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    DEEPMNN_UNROLL
    for (int j = 0; j < kKeys; ++j) to[i * kStride + j] = acc[i][j];
  }
}

// scores[query][first + j] of as many keys as make 16 dot products, whose lanes are summed in one go.
template <class Cache, int kQueries>
DEEPMNN_INLINE void score_keys(const AttentionTask& task, const float* q, const uint8_t* const* keys, int64_t first,
                               float (*scores)[kTileKeys]) {
  constexpr int kKeys = 16 / kQueries;
  constexpr int kFit = kVectorRegisters >= 32 ? kKeys : (6 / kQueries < 1 ? 1 : 6 / kQueries);
  constexpr int kAtOnce = kFit < kKeys ? kFit : kKeys;
  F32x16 acc[16];
  DEEPMNN_UNROLL
  for (int i = kQueries * kKeys; i < 16; ++i) acc[i] = splat(0.0f);
  int j = 0;
  DEEPMNN_UNROLL
  for (; j + kAtOnce <= kKeys; j += kAtOnce) {
    multiply_keys<Cache, kQueries, kAtOnce, kKeys>(task, q, keys + first + j, acc + j);
  }
  DEEPMNN_UNROLL
  for (; j < kKeys; ++j) multiply_keys<Cache, kQueries, 1, kKeys>(task, q, keys + first + j, acc + j);
  float out[16];
  store(out, sums(acc) * splat(task.scale));
  for (int i = 0; i < kQueries; ++i) {
    for (int k = 0; k < kKeys; ++k) scores[i][first + k] = out[i * kKeys + k];
  }
}

// Turns a query's n scores into weights exp(score - maximum); updates maximum and sum and returns the factor that the
// old accumulator gets.
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
    const F32x16 weight = exp_below(load(scores + k) - splat(maximum));
    store(scores + k, weight);
    total = total + weight;
  }
  float factor = 0.0f;
  if (max_sum[1] != 0.0f) {
    float lanes[16];
    store(lanes, exp_below(splat(old - maximum)));
    factor = lanes[0];
  }
  max_sum[0] = maximum;
  max_sum[1] = max_sum[1] * factor + sum(total);
  return factor;
}

// kVectors * 16 columns of the output from column d on: acc = acc * factor + sum over keys of weight * value.
template <class Cache, int kQueries, int kVectors>
DEEPMNN_INLINE void add_values(const AttentionTask& task, const uint8_t* const* values, int64_t n_keys, int64_t d,
                               int64_t lanes, const float (*weights)[kTileKeys], const float* factors, float* acc) {
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
  for (int64_t k = 0; k < n_keys; ++k) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) {
      const F32x16 value =
          lanes == 16 ? Cache::read(values[k], task.v, d + c * 16) : Cache::read(values[k], task.v, d + c * 16, lanes);
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

// kQueries queries from `query` on against the first n keys of a tile that starts at key `first`.
template <class Cache, int kQueries>
void attend_rows_tile(const AttentionTask& task, int64_t query, int64_t first, int64_t n, const TileRows& rows) {
  constexpr int kKeys = 16 / kQueries;
  constexpr int kFit = (kVectorRegisters >= 32 ? 24 : 6) / kQueries;
  constexpr int kVectors = kFit >= 8 ? 8 : (kFit >= 4 ? 4 : (kFit >= 2 ? 2 : 1));
  int64_t seen[kQueries], most = 0;  // keys of this tile that each query sees
  for (int i = 0; i < kQueries; ++i) {
    const int64_t left = visible_keys(task, query + i) - first;
    seen[i] = left < 0 ? 0 : (left < n ? left : n);
    most = seen[i] > most ? seen[i] : most;
  }
  if (most == 0) return;
  float weights[kQueries][kTileKeys];
  const float* q = task.q + query * task.q_stride;
  int64_t key = 0;
  for (; key + kKeys <= most; key += kKeys) score_keys<Cache, kQueries>(task, q, rows.k, key, weights);
  if (key < most) {
    const uint8_t* keys[kKeys];  // past the end the last key stands in; its score is not used
    float scores[kQueries][kTileKeys];
    for (int j = 0; j < kKeys; ++j) keys[j] = rows.k[key + j < most ? key + j : most - 1];
    score_keys<Cache, kQueries>(task, q, keys, 0, scores);
    for (int i = 0; i < kQueries; ++i) {
      for (int64_t j = key; j < most; ++j) weights[i][j] = scores[i][j - key];
    }
  }
  float factors[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    factors[i] = update_softmax(weights[i], seen[i], task.max_sum + 2 * (query + i));
    for (int64_t j = seen[i]; j < most; ++j) weights[i][j] = 0.0f;
  }
  float* acc = task.acc + query * task.v_dim;
  int64_t d = 0;
  for (; d + 16 * kVectors <= task.v_dim; d += 16 * kVectors) {
    add_values<Cache, kQueries, kVectors>(task, rows.v, most, d, 16, weights, factors, acc);
  }
  for (; d < task.v_dim; d += 16) {
    const int64_t lanes = task.v_dim - d < 16 ? task.v_dim - d : 16;
    add_values<Cache, kQueries, 1>(task, rows.v, most, d, lanes, weights, factors, acc);
  }
}

// Keys outside, queries inside: a tile of keys and values stays in cache while all the queries pass.
template <class Cache>
void attend_rows(const AttentionTask& task) {
  for (int64_t key = 0; key < task.n_keys; key += kTileKeys) {
    const int64_t n = task.n_keys - key < kTileKeys ? task.n_keys - key : kTileKeys;
    int64_t numbers[kTileKeys];
    TileRows rows;
    locate_rows(task, key, n, numbers);
    for (int64_t i = 0; i < n; ++i) {
      rows.k[i] = task.k.data + numbers[i] * task.k.row_nbytes;
      rows.v[i] = task.v.data + numbers[i] * task.v.row_nbytes;
    }
    for (int64_t query = 0; query < task.n_queries; query += kFewQueries) {
      const int64_t left = task.n_queries - query;
      with_count<1, kFewQueries>(left < kFewQueries ? left : kFewQueries, [&](auto queries) {
        attend_rows_tile<Cache, queries.value>(task, query, key, n, rows);
      });
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
