// What the forms of attention share whose vectors are 16 queries: the running softmax of each query and its output.
// What a query gets does not depend on the other lanes.
#pragma once

#include "kernels/attention_cache.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// Register tiles: keys × query vectors for scores, queries × value vectors for outputs.
constexpr int kScoreKeys = kVectorRegisters >= 32 ? 8 : 4;
constexpr int kScoreVectors = kVectorRegisters >= 32 ? 2 : 1;
constexpr int kValueQueries = kVectorRegisters >= 32 ? 8 : 4;
constexpr int kValueVectors = kVectorRegisters >= 32 ? 2 : 1;

struct Lanes {
  float* weights;    // [vectors of 16 queries][kTileKeys][16] or [queries][kInt8Keys]: scores of a tile, then weights
  float* out;        // [slices of 32 columns][queries][32]
  float* maximum;    // [queries]
  float* sum;        // [queries]
  float* factor;     // [queries]: what the old output gets
  float* gain;       // [queries]: what the tile's output gets, where weights are relative to the tile's largest
  int32_t* limits;   // [queries], 0 for padding
  int64_t queries;   // padded to whole vectors
  int64_t out_cols;  // padded to whole slices
  int64_t shift;     // columns of `out` before the first of the task's
};

DEEPMNN_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Takes pieces of the task's working memory one after another.
struct Work {
  float* at;
  float* take(int64_t floats) { return (at += floats) - floats; }
};

inline Lanes take_lanes(const AttentionTask& task, int64_t tile_keys, int64_t out_cols, int64_t shift, Work& work) {
  Lanes lanes;
  lanes.queries = round_up(task.n_queries, 16);
  lanes.out_cols = out_cols;
  lanes.shift = shift;
  lanes.weights = work.take(tile_keys * lanes.queries);
  lanes.out = work.take(lanes.queries * out_cols);
  lanes.maximum = work.take(lanes.queries);
  lanes.sum = work.take(lanes.queries);
  lanes.factor = work.take(lanes.queries);
  lanes.gain = work.take(lanes.queries);
  lanes.limits = reinterpret_cast<int32_t*>(work.take(lanes.queries));
  return lanes;
}

DEEPMNN_INLINE float* output_at(const Lanes& lanes, int64_t query, int64_t col) {
  return lanes.out + (col / 32 * lanes.queries + query) * 32 + col % 32;
}

// Calls function(column of the task, where it lies in `out`, lanes) for pieces of up to 16 columns of a query.
template <class Function>
DEEPMNN_INLINE void for_output(const AttentionTask& task, const Lanes& lanes, int64_t query, Function&& function) {
  for (int64_t d = 0; d < task.v_dim;) {
    const int64_t col = d + lanes.shift, inside = 16 - col % 16, left = task.v_dim - d;
    const int64_t n = left < inside ? left : inside;
    function(d, output_at(lanes, query, col), n);
    d += n;
  }
}

// The state before this run. An accumulator without a sum is nobody's: it may hold anything.
inline void read_state(const AttentionTask& task, const Lanes& lanes) {
  __builtin_memset(lanes.out, 0, static_cast<uint64_t>(lanes.queries * lanes.out_cols) * sizeof(float));
  for (int64_t i = 0; i < lanes.queries; ++i) {
    const bool real = i < task.n_queries;
    lanes.maximum[i] = real ? task.max_sum[2 * i] : -__builtin_inff();
    lanes.sum[i] = real ? task.max_sum[2 * i + 1] : 0.0f;
    lanes.limits[i] = real ? static_cast<int32_t>(visible_keys(task, i)) : 0;
    if (lanes.sum[i] == 0.0f) continue;
    for_output(task, lanes, i,
               [&](int64_t d, float* out, int64_t n) { store(out, load(task.acc + i * task.v_dim + d, n), n); });
  }
}

inline void write_state(const AttentionTask& task, const Lanes& lanes) {
  for (int64_t i = 0; i < task.n_queries; ++i) {
    task.max_sum[2 * i] = lanes.maximum[i];
    task.max_sum[2 * i + 1] = lanes.sum[i];
    if (lanes.sum[i] == 0.0f) continue;
    for_output(task, lanes, i, [&](int64_t d, float* out, int64_t n) {
      float* to = task.acc + i * task.v_dim + d;
      n == 16 ? store(to, load(out)) : store(to, load(out, n), n);
    });
  }
}

// Keys that the 16 queries from `first` on see: any of them, and all of them.
struct Seen {
  int64_t most, least;
};

DEEPMNN_INLINE Seen seen_by(const Lanes& lanes, int64_t first) {
  Seen seen{lanes.limits[first], lanes.limits[first]};
  for (int64_t i = first + 1; i < first + 16; ++i) {
    seen.most = lanes.limits[i] > seen.most ? lanes.limits[i] : seen.most;
    seen.least = lanes.limits[i] < seen.least ? lanes.limits[i] : seen.least;
  }
  return seen;
}

// Keys of the tile [start, start + n) below `limit`.
DEEPMNN_INLINE int64_t inside(int64_t limit, int64_t start, int64_t n) {
  return limit <= start ? 0 : (limit - start < n ? limit - start : n);
}

// Keys that some query of the task sees.
inline int64_t seen_keys(const AttentionTask& task, const Lanes& lanes) {
  int64_t most = 0;
  for (int64_t i = 0; i < task.n_queries; ++i) most = lanes.limits[i] > most ? lanes.limits[i] : most;
  return most;
}

// Scores of keys that a lane's bit is not set for become -inf. Returns the largest of each lane.
inline F32x16 mask_scores(float* scores, int64_t n, const uint16_t* mask) {
  static constexpr int32_t kBits[16] = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                        1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  const F32x16 lowest = splat(-__builtin_inff());
  const I32x16 lanes = load_i32(kBits), zero = splat_i32(0);
  F32x16 top = lowest;
  for (int64_t k = 0; k < n; ++k) {
    const I32x16 seen = splat_i32(mask[k]) & lanes;
    const F32x16 score = from_bits(select_greater(seen, zero, bits(load(scores + 16 * k)), bits(lowest)));
    store(scores + 16 * k, score);
    top = max(top, score);
  }
  return top;
}

// The largest of each lane's n scores. masked: keys begin at `start`, and those a lane does not see become -inf.
inline F32x16 top_scores(const Lanes& lanes, int64_t first, int64_t start, int64_t n, bool masked) {
  float* weights = lanes.weights + first * kTileKeys;
  const F32x16 lowest = splat(-__builtin_inff());
  F32x16 tops[4] = {lowest, lowest, lowest, lowest};  // a chain of maxima would wait for each
  if (masked) {
    const I32x16 limits = load_i32(lanes.limits + first);
    for (int64_t k = 0; k < n; ++k) {
      const I32x16 key = splat_i32(static_cast<int32_t>(start + k));
      const F32x16 score = from_bits(select_greater(limits, key, bits(load(weights + 16 * k)), bits(lowest)));
      store(weights + 16 * k, score);
      tops[0] = max(tops[0], score);
    }
    return tops[0];
  }
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    DEEPMNN_UNROLL
    for (int i = 0; i < 4; ++i) tops[i] = max(tops[i], load(weights + 16 * (k + i)));
  }
  for (; k < n; ++k) tops[0] = max(tops[0], load(weights + 16 * k));
  return max(max(tops[0], tops[1]), max(tops[2], tops[3]));
}

// The softmax of 16 queries from `first` on: scores of the tile's n keys, which begin at `start`, become weights;
// maximum and sum are brought up to date. masked: some query does not see all of them; mask: which they see, or null.
inline void update_lanes(const Lanes& lanes, int64_t first, int64_t start, int64_t n, bool masked,
                         const uint16_t* mask) {
  float* weights = lanes.weights + first * kTileKeys;
  const F32x16 old = load(lanes.maximum + first);
  const F32x16 found = mask ? mask_scores(weights, n, mask) : top_scores(lanes, first, start, n, masked);
  // A lane that has seen nothing has the maximum -inf, and -inf - -inf is no number.
  const F32x16 top = max(old, found), from = max(top, splat(-3.0e38f));
  F32x16 total = splat(0.0f);
  for (int64_t k = 0; k < n; ++k) {
    const F32x16 weight = exp_below(load(weights + 16 * k) - from);
    store(weights + 16 * k, weight);
    total = total + weight;
  }
  const F32x16 factor = exp_below(old - from);
  store(lanes.maximum + first, top);
  store(lanes.sum + first, fma(load(lanes.sum + first), factor, total));
  store(lanes.factor + first, factor);
}

}  // namespace deepmnn::DEEPMNN_NS
