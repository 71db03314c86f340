// Attention for many queries: 16 queries are the lanes of a vector. Queries are transposed once; a tile of keys and
// values is converted to float32 once and passes all of them. A score is a sum over columns of broadcast key times
// query vector, an output one over keys of broadcast weight times value vector: nothing is summed across lanes, and
// the softmax runs on 16 queries at once.
#pragma once

#include "kernels/attention_lanes.h"

namespace deepmnn::DEEPMNN_NS {

// A strip is [slices of kAttentionStripCols columns][kTileKeys][kAttentionStripCols] float32: rows of one slice lie a
// constant distance apart, so that a register tile addresses them all from one pointer.
constexpr int64_t kSliceFloats = kTileKeys * kAttentionStripCols;

struct Strips {
  Lanes lanes;
  float* q;        // [vectors of 16 queries][qk_dim padded to 16][16], times scale
  float* k;        // strip
  float* v;        // strip, the same as k where keys and values are the same rows
  int64_t q_cols;  // qk_dim padded to 16
};

DEEPMNN_INLINE float* strip_at(float* strip, int64_t key, int64_t col) {
  return strip + col / kAttentionStripCols * kSliceFloats + key * kAttentionStripCols + col % kAttentionStripCols;
}

inline void pack_queries(const AttentionTask& task, const Strips& strips) {
  const F32x16 scale = splat(task.scale);
  for (int64_t first = 0; first < strips.lanes.queries; first += 16) {
    float* to = strips.q + first * strips.q_cols;
    for (int64_t d = 0; d < strips.q_cols; d += 16, to += 256) {
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
void fill_strip(const CacheRows& rows, const int64_t* numbers, int64_t n, int64_t padded, int64_t dim, float* strip) {
  constexpr int64_t kAhead = 12;
  const int64_t cols = (dim + 31) / 32 * 32;
  for (int64_t first = 0; first < cols; first += kAttentionStripCols, strip += kSliceFloats) {
    const int64_t end = cols - first < kAttentionStripCols ? cols - first : kAttentionStripCols;
    for (int64_t key = 0; key < padded; ++key) {
      const uint8_t* row = rows.data + (key < n ? numbers[key] : 0) * rows.row_nbytes;
      if (key + kAhead < n) {
        Cache::prefetch_slice(rows.data + numbers[key + kAhead] * rows.row_nbytes, rows, first);
      } else if (key + kAhead - n < n) {
        Cache::prefetch_slice(rows.data + numbers[key + kAhead - n] * rows.row_nbytes, rows,
                              first + kAttentionStripCols);
      }
      for (int64_t d = 0; d < end; d += 16) {
        const int64_t left = key < n ? dim - first - d : 0;
        const F32x16 x = left >= 16 ? Cache::read(row, rows, first + d)
                                    : (left > 0 ? Cache::read(row, rows, first + d, left) : splat(0.0f));
        store(strip + key * kAttentionStripCols + d, x);
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
  for (int64_t first = 0; first < qk_dim; first += kAttentionStripCols, k += kSliceFloats) {
    const int64_t n = qk_dim - first < kAttentionStripCols ? qk_dim - first : kAttentionStripCols;
    for (int64_t d = 0; d < n; ++d, q += 16) {
      F32x16 query[kVectors];
      DEEPMNN_UNROLL
      for (int c = 0; c < kVectors; ++c) query[c] = load(q + c * q_stride);
      DEEPMNN_UNROLL
      for (int i = 0; i < kKeys; ++i) {
        DEEPMNN_UNROLL
        for (int c = 0; c < kVectors; ++c) acc[i][c] = fma(splat(k[i * kAttentionStripCols + d]), query[c], acc[i][c]);
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
void score_strip(const AttentionTask& task, const Strips& strips, int64_t first, int64_t n) {
  for (int64_t key = 0; key < n; key += kKeys) {
    score_block<kKeys, kVectors>(strips.k + key * kAttentionStripCols, strips.q + first * strips.q_cols, task.qk_dim,
                                 16 * strips.q_cols, strips.lanes.weights + first * kTileKeys + 16 * key);
  }
}

// kQueries × kVectors of the output: out = out * factor + sum over the tile's n keys of weight * value.
template <int kQueries, int kVectors>
DEEPMNN_INLINE void weigh_block(const Strips& strips, int64_t query, int64_t col, int64_t n) {
  F32x16 acc[kQueries][kVectors];
  float* out = output_at(strips.lanes, query, col);
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const F32x16 factor = splat(strips.lanes.factor[query + i]);
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) acc[i][c] = load(out + 32 * i + 16 * c) * factor;
  }
  const float* v = strip_at(strips.v, 0, col);
  const float* weights = strips.lanes.weights + query / 16 * 16 * kTileKeys + query % 16;
  for (int64_t k = 0; k < n; ++k, v += kAttentionStripCols, weights += 16) {
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

inline Strips make_strips(const AttentionTask& task) {
  Work work{task.work};
  Strips strips;
  strips.lanes = take_lanes(task, kTileKeys, round_up(task.v_dim, 32), 0, work);
  strips.q_cols = round_up(task.qk_dim, 16);
  strips.q = work.take(strips.lanes.queries * strips.q_cols);
  strips.k = work.take(round_up(task.qk_dim, kAttentionStripCols) * kTileKeys);
  strips.v = task.values_in_keys ? strips.k : work.take(round_up(task.v_dim, kAttentionStripCols) * kTileKeys);
  return strips;
}

// All queries against the tile of n keys in the strips. Queries that see none of it are passed over, 16 at a time.
inline void attend_tile(const AttentionTask& task, const Strips& strips, int64_t start, int64_t n) {
  constexpr int64_t kPair = 16 * kScoreVectors;
  int64_t first = 0;
  for (; first + kPair <= strips.lanes.queries; first += kPair) {
    int64_t most = 0;
    for (int64_t at = first; at < first + kPair; at += 16) {
      const int64_t found = inside(seen_by(strips.lanes, at).most, start, n);
      most = found > most ? found : most;
    }
    score_strip<kScoreKeys, kScoreVectors>(task, strips, first, most);
  }
  for (; first < strips.lanes.queries; first += 16) {
    score_strip<kScoreKeys * kScoreVectors, 1>(task, strips, first,
                                               inside(seen_by(strips.lanes, first).most, start, n));
  }
  for (int64_t at = 0; at < strips.lanes.queries; at += 16) {
    const Seen seen = seen_by(strips.lanes, at);
    const int64_t found = inside(seen.most, start, n);
    const uint16_t* mask = task.mask ? task.mask + at / 16 * task.mask_stride + start : nullptr;
    if (found) update_lanes(strips.lanes, at, start, found, seen.least < start + found, mask);
  }
  for (int64_t col = 0; col < strips.lanes.out_cols; col += 16 * kValueVectors) {
    for (int64_t at = 0; at < strips.lanes.queries; at += 16) {
      const int64_t found = inside(seen_by(strips.lanes, at).most, start, n);
      for (int64_t i = 0; i < 16 && found; i += kValueQueries) {
        weigh_block<kValueQueries, kValueVectors>(strips, at + i, col, found);
      }
    }
  }
}

template <class Cache>
void attend_strips(const AttentionTask& task) {
  constexpr int64_t kRows = kScoreKeys * kScoreVectors;  // of the tallest score block
  const Strips strips = make_strips(task);
  pack_queries(task, strips);
  read_state(task, strips.lanes);
  const int64_t most = seen_keys(task, strips.lanes);
  for (int64_t start = 0; start < most; start += kTileKeys) {
    const int64_t n = most - start < kTileKeys ? most - start : kTileKeys;
    int64_t numbers[kTileKeys];
    locate_rows(task, start, n, numbers);
    fill_strip<Cache>(task.k, numbers, n, round_up(n, kRows), task.qk_dim, strips.k);
    if (!task.values_in_keys) fill_strip<Cache>(task.v, numbers, n, n, task.v_dim, strips.v);
    attend_tile(task, strips, start, n);
  }
  write_state(task, strips.lanes);
}

}  // namespace deepmnn::DEEPMNN_NS
