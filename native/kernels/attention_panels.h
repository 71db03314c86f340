// Attention for many queries: 16 queries are the lanes of a vector. Queries are transposed once; a tile of keys and
// values is converted to float32 once and passes all of them. A score is a sum over columns of broadcast key times
// query vector, an output one over keys of broadcast weight times value vector: nothing is summed across lanes, and
// the softmax runs on 16 queries at once. What a query gets does not depend on the other lanes.
#pragma once

#include "kernels/attention_cache.h"
#include "kernels/math.h"

namespace deepmnn::DEEPMNN_NS {

// Register tiles: keys × query vectors for scores, queries × value vectors for outputs.
constexpr int kScoreKeys = kVectorRegisters >= 32 ? 8 : 4;
constexpr int kScoreVectors = kVectorRegisters >= 32 ? 2 : 1;
constexpr int kValueQueries = kVectorRegisters >= 32 ? 8 : 4;
constexpr int kValueVectors = kVectorRegisters >= 32 ? 2 : 1;

// A panel is [chunks of kAttentionPanelCols columns][kTileKeys][kAttentionPanelCols] float32: rows of one chunk lie a
// constant distance apart, so that a register tile addresses them all from one pointer.
constexpr int64_t kChunkFloats = kTileKeys * kAttentionPanelCols;

struct Panels {
  float* q;          // [vectors of 16 queries][qk_dim padded to 16][16], times scale
  float* k;          // panel
  float* v;          // panel, the same as k where keys and values are the same rows
  float* weights;    // [kTileKeys][queries]: scores, then exp(score - maximum)
  float* out;        // [queries][v_dim padded to 32]
  float* maximum;    // [queries]
  float* sum;        // [queries]
  float* factor;     // [queries]
  int32_t* limits;   // [queries], 0 for padding
  int64_t queries;   // padded to whole vectors
  int64_t q_cols;    // qk_dim padded to 16
  int64_t out_cols;  // v_dim padded to 32
};

DEEPMNN_INLINE float* panel_at(float* panel, int64_t key, int64_t col) {
  return panel + col / kAttentionPanelCols * kChunkFloats + key * kAttentionPanelCols + col % kAttentionPanelCols;
}

DEEPMNN_INLINE float* output_at(const Panels& panels, int64_t query, int64_t col) {
  return panels.out + (col / 32 * panels.queries + query) * 32 + col % 32;
}

// Rows become columns: four perfect shuffles of the 256 numbers turn the index bits rrrrcccc into ccccrrrr.
DEEPMNN_INLINE void transpose(F32x16 (&rows)[16]) {
  DEEPMNN_UNROLL
  for (int round = 0; round < 4; ++round) {
    F32x16 next[16];
    DEEPMNN_UNROLL
    for (int i = 0; i < 8; ++i) interleave(rows[i], rows[i + 8], next[2 * i], next[2 * i + 1]);
    DEEPMNN_UNROLL
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
}

inline void pack_queries(const AttentionTask& task, const Panels& panels) {
  const F32x16 scale = splat(task.scale);
  for (int64_t first = 0; first < panels.queries; first += 16) {
    float* to = panels.q + first * panels.q_cols;
    for (int64_t d = 0; d < panels.q_cols; d += 16, to += 256) {
      const int64_t lanes = task.qk_dim - d < 16 ? task.qk_dim - d : 16;
      F32x16 rows[16];
      for (int64_t i = 0; i < 16; ++i) {
        rows[i] = first + i < task.n_queries ? load(task.q + (first + i) * task.q_stride + d, lanes) : splat(0.0f);
      }
      transpose(rows);
      for (int i = 0; i < 16; ++i) store(to + 16 * i, rows[i] * scale);
    }
  }
}

// Rows [0, n) of a tile, then zeros to `padded` rows and to whole register tiles of columns.
template <class Cache>
void fill_panel(const CacheRows& rows, const int64_t* numbers, int64_t n, int64_t padded, int64_t dim, float* panel) {
  constexpr int64_t kAhead = 12;
  const int64_t cols = (dim + 31) / 32 * 32;
  for (int64_t first = 0; first < cols; first += kAttentionPanelCols, panel += kChunkFloats) {
    const int64_t end = cols - first < kAttentionPanelCols ? cols - first : kAttentionPanelCols;
    for (int64_t key = 0; key < padded; ++key) {
      const uint8_t* row = rows.data + (key < n ? numbers[key] : 0) * rows.row_nbytes;
      if (key + kAhead < n) {
        Cache::prefetch_chunk(rows.data + numbers[key + kAhead] * rows.row_nbytes, rows, first);
      } else if (key + kAhead - n < n) {
        Cache::prefetch_chunk(rows.data + numbers[key + kAhead - n] * rows.row_nbytes, rows,
                              first + kAttentionPanelCols);
      }
      for (int64_t d = 0; d < end; d += 16) {
        const int64_t left = key < n ? dim - first - d : 0;
        const F32x16 x = left >= 16 ? Cache::read(row, rows, first + d)
                                    : (left > 0 ? Cache::read(row, rows, first + d, left) : splat(0.0f));
        store(panel + key * kAttentionPanelCols + d, x);
      }
    }
  }
}

// weights[key][query] of kKeys keys and kVectors query vectors.
template <int kKeys, int kVectors>
DEEPMNN_INLINE void score_block(const float* k, const float* q, int64_t qk_dim, int64_t q_stride, float* to) {
  F32x16 acc[kKeys][kVectors];
  DEEPMNN_UNROLL
  for (int i = 0; i < kKeys; ++i) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) acc[i][c] = splat(0.0f);
  }
  for (int64_t first = 0; first < qk_dim; first += kAttentionPanelCols, k += kChunkFloats) {
    const int64_t n = qk_dim - first < kAttentionPanelCols ? qk_dim - first : kAttentionPanelCols;
    for (int64_t d = 0; d < n; ++d, q += 16) {
      F32x16 query[kVectors];
      DEEPMNN_UNROLL
      for (int c = 0; c < kVectors; ++c) query[c] = load(q + c * q_stride);
      DEEPMNN_UNROLL
      for (int i = 0; i < kKeys; ++i) {
        DEEPMNN_UNROLL
        for (int c = 0; c < kVectors; ++c) acc[i][c] = fma(splat(k[i * kAttentionPanelCols + d]), query[c], acc[i][c]);
      }
    }
  }
  DEEPMNN_UNROLL
  for (int i = 0; i < kKeys; ++i) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) store(to + 16 * (c * kTileKeys + i), acc[i][c]);
  }
}

// kVectors query vectors from query `first` on against the tile's first n keys.
template <int kKeys, int kVectors>
void score_panel(const AttentionTask& task, const Panels& panels, int64_t first, int64_t n) {
  for (int64_t key = 0; key < n; key += kKeys) {
    score_block<kKeys, kVectors>(panels.k + key * kAttentionPanelCols, panels.q + first * panels.q_cols, task.qk_dim,
                                 16 * panels.q_cols, panels.weights + first * kTileKeys + 16 * key);
  }
}

// The softmax of 16 queries from `first` on: scores of the tile's n keys become weights, maximum and sum are brought
// up to date, factor is what the old output gets. masked: some query does not see all n, which begin at key `start`.
inline void update_lanes(const Panels& panels, int64_t first, int64_t start, int64_t n, bool masked) {
  float* weights = panels.weights + first * kTileKeys;
  const F32x16 old = load(panels.maximum + first);
  F32x16 top = old;
  if (masked) {
    const I32x16 limits = load_i32(panels.limits + first), nothing = bits(splat(-__builtin_inff()));
    for (int64_t k = 0; k < n; ++k) {
      const I32x16 key = splat_i32(static_cast<int32_t>(start + k));
      const F32x16 score = from_bits(select_greater(limits, key, bits(load(weights + 16 * k)), nothing));
      store(weights + 16 * k, score);
      top = max(top, score);
    }
  } else {
    F32x16 tops[4] = {old, old, old, old};  // a chain of maxima would wait for each
    int64_t k = 0;
    for (; k + 4 <= n; k += 4) {
      DEEPMNN_UNROLL
      for (int i = 0; i < 4; ++i) tops[i] = max(tops[i], load(weights + 16 * (k + i)));
    }
    for (; k < n; ++k) tops[0] = max(tops[0], load(weights + 16 * k));
    top = max(max(tops[0], tops[1]), max(tops[2], tops[3]));
  }
  // A lane that has seen nothing has the maximum -inf, and -inf - -inf is no number.
  const F32x16 from = max(top, splat(-3.0e38f));
  F32x16 total = splat(0.0f);
  for (int64_t k = 0; k < n; ++k) {
    const F32x16 weight = exp_below(load(weights + 16 * k) - from);
    store(weights + 16 * k, weight);
    total = total + weight;
  }
  const F32x16 factor = exp_below(old - from);
  store(panels.maximum + first, top);
  store(panels.sum + first, fma(load(panels.sum + first), factor, total));
  store(panels.factor + first, factor);
}

// kQueries × kVectors of the output: out = out * factor + sum over the tile's n keys of weight * value.
template <int kQueries, int kVectors>
DEEPMNN_INLINE void weigh_block(const Panels& panels, int64_t query, int64_t col, int64_t n) {
  F32x16 acc[kQueries][kVectors];
  float* out = output_at(panels, query, col);
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const F32x16 factor = splat(panels.factor[query + i]);
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) acc[i][c] = load(out + 32 * i + 16 * c) * factor;
  }
  const float* v = panel_at(panels.v, 0, col);
  const float* weights = panels.weights + query / 16 * 16 * kTileKeys + query % 16;
  for (int64_t k = 0; k < n; ++k, v += kAttentionPanelCols, weights += 16) {
    F32x16 value[kVectors];
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) value[c] = load(v + 16 * c);
    DEEPMNN_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const F32x16 weight = splat(weights[i]);
      DEEPMNN_UNROLL
      for (int c = 0; c < kVectors; ++c) acc[i][c] = fma(weight, value[c], acc[i][c]);
    }
  }
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) store(out + 32 * i + 16 * c, acc[i][c]);
  }
}

inline Panels make_panels(const AttentionTask& task) {
  const auto whole = [](int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; };
  Panels panels;
  panels.queries = whole(task.n_queries, 16);
  panels.q_cols = whole(task.qk_dim, 16);
  panels.out_cols = whole(task.v_dim, 32);
  float* at = task.work;
  const auto take = [&](int64_t floats) { return (at += floats) - floats; };
  panels.q = take(panels.queries * panels.q_cols);
  panels.k = take(whole(task.qk_dim, kAttentionPanelCols) * kTileKeys);
  panels.v = task.values_in_keys ? panels.k : take(whole(task.v_dim, kAttentionPanelCols) * kTileKeys);
  panels.weights = take(kTileKeys * panels.queries);
  panels.out = take(panels.queries * panels.out_cols);
  panels.maximum = take(panels.queries);
  panels.sum = take(panels.queries);
  panels.factor = take(panels.queries);
  panels.limits = reinterpret_cast<int32_t*>(take(panels.queries));
  return panels;
}

// The state before this run. An accumulator without a sum is nobody's: it may hold anything.
inline void read_state(const AttentionTask& task, const Panels& panels) {
  for (int64_t i = 0; i < panels.queries; ++i) {
    const bool real = i < task.n_queries;
    panels.maximum[i] = real ? task.max_sum[2 * i] : -__builtin_inff();
    panels.sum[i] = real ? task.max_sum[2 * i + 1] : 0.0f;
    panels.limits[i] = real ? static_cast<int32_t>(visible_keys(task, i)) : 0;
    const bool known = panels.sum[i] != 0.0f;
    for (int64_t d = 0; d < panels.out_cols; d += 16) {
      const int64_t left = task.v_dim - d, lanes = left < 0 ? 0 : (left < 16 ? left : 16);
      store(output_at(panels, i, d), known && lanes ? load(task.acc + i * task.v_dim + d, lanes) : splat(0.0f));
    }
  }
}

inline void write_state(const AttentionTask& task, const Panels& panels) {
  for (int64_t i = 0; i < task.n_queries; ++i) {
    task.max_sum[2 * i] = panels.maximum[i];
    task.max_sum[2 * i + 1] = panels.sum[i];
    if (panels.sum[i] == 0.0f) continue;
    for (int64_t d = 0; d < task.v_dim; d += 16) {
      const int64_t lanes = task.v_dim - d < 16 ? task.v_dim - d : 16;
      store(task.acc + i * task.v_dim + d, load(output_at(panels, i, d)), lanes);
    }
  }
}

// Keys that the 16 queries from `first` on see: any of them, and all of them.
struct Seen {
  int64_t most, least;
};

DEEPMNN_INLINE Seen seen_by(const Panels& panels, int64_t first) {
  Seen seen{panels.limits[first], panels.limits[first]};
  for (int64_t i = first + 1; i < first + 16; ++i) {
    seen.most = panels.limits[i] > seen.most ? panels.limits[i] : seen.most;
    seen.least = panels.limits[i] < seen.least ? panels.limits[i] : seen.least;
  }
  return seen;
}

// Keys of the tile [start, start + n) below `limit`.
DEEPMNN_INLINE int64_t inside(int64_t limit, int64_t start, int64_t n) {
  return limit <= start ? 0 : (limit - start < n ? limit - start : n);
}

// All queries against the tile of n keys in the panels. Queries that see none of it are passed over, 16 at a time.
inline void attend_tile(const AttentionTask& task, const Panels& panels, int64_t start, int64_t n) {
  constexpr int64_t kPair = 16 * kScoreVectors;
  int64_t first = 0;
  for (; first + kPair <= panels.queries; first += kPair) {
    int64_t most = 0;
    for (int64_t at = first; at < first + kPair; at += 16) {
      const int64_t found = inside(seen_by(panels, at).most, start, n);
      most = found > most ? found : most;
    }
    score_panel<kScoreKeys, kScoreVectors>(task, panels, first, most);
  }
  for (; first < panels.queries; first += 16) {
    score_panel<kScoreKeys * kScoreVectors, 1>(task, panels, first, inside(seen_by(panels, first).most, start, n));
  }
  for (int64_t at = 0; at < panels.queries; at += 16) {
    const Seen seen = seen_by(panels, at);
    const int64_t found = inside(seen.most, start, n);
    if (found) update_lanes(panels, at, start, found, seen.least < start + found);
  }
  for (int64_t col = 0; col < panels.out_cols; col += 16 * kValueVectors) {
    for (int64_t at = 0; at < panels.queries; at += 16) {
      const int64_t found = inside(seen_by(panels, at).most, start, n);
      for (int64_t i = 0; i < 16 && found; i += kValueQueries) {
        weigh_block<kValueQueries, kValueVectors>(panels, at + i, col, found);
      }
    }
  }
}

template <class Cache>
void attend_panels(const AttentionTask& task) {
  constexpr int64_t kRows = kScoreKeys * kScoreVectors;  // of the tallest score block
  const Panels panels = make_panels(task);
  pack_queries(task, panels);
  read_state(task, panels);
  int64_t most = 0;
  for (int64_t i = 0; i < task.n_queries; ++i) most = panels.limits[i] > most ? panels.limits[i] : most;
  for (int64_t start = 0; start < most; start += kTileKeys) {
    const int64_t n = most - start < kTileKeys ? most - start : kTileKeys;
    int64_t numbers[kTileKeys];
    locate_rows(task, start, n, numbers);
    fill_panel<Cache>(task.k, numbers, n, (n + kRows - 1) / kRows * kRows, task.qk_dim, panels.k);
    if (!task.values_in_keys) fill_panel<Cache>(task.v, numbers, n, n, task.v_dim, panels.v);
    attend_tile(task, panels, start, n);
  }
  write_state(task, panels);
}

}  // namespace deepmnn::DEEPMNN_NS
