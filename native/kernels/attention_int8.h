// Attention over an int8 cache in integers, 16 queries to a vector. Queries are quantised like activations, one scale
// per group of the cache's columns, so a score is a sum over groups of exact int32 products, each times both scales:
// what w8 does in linear.h. Values keep their codes; weights, relative to the tile's largest, times a key's scale
// become 15-bit integers, so an output is an exact int32 sum over the tile's keys times one scale per group.
//
// Beside float arithmetic on the same cache: a query's element is off by at most 1/254 of the largest of its group, a
// weight by at most 1/65534 of the tile's largest weight times the largest scale of the group (all keys of a tile
// together: 0.1 % of that).
#pragma once

#include "kernels/attention_lanes.h"
#include "kernels/quantize_rows.h"

namespace deepmnn::DEEPMNN_NS {

constexpr int64_t kPairs = kTileKeys / 2;
constexpr int kPairStep = 8;  // pairs of straight code: GCC copies every accumulator at the end of a loop
constexpr float kWeightMost = 32767.0f;

// The groups of a row's columns [column, column + dim). The first and the last may hold other heads' columns, too.
struct Groups {
  int64_t first, count;
  int64_t shift;  // columns of the first group before `column`
  int64_t end;    // column + dim

  Groups(const CacheRows& rows, int64_t dim)
      : first(rows.column / kCacheGroup),
        count((rows.column + dim - 1) / kCacheGroup - first + 1),
        shift(rows.column % kCacheGroup),
        end(rows.column + dim) {}

  // Columns of group g up to the end.
  int64_t cols(int64_t g) const {
    const int64_t left = end - (first + g) * kCacheGroup;
    return left < kCacheGroup ? left : kCacheGroup;
  }
};

struct Int8Panels {
  Lanes lanes;
  Groups keys, values;
  int8_t* q;         // [vectors of 16 queries][groups][fours of columns][16][4]
  float* q_scales;   // [vectors][groups][16]
  int32_t* q_start;  // [vectors][groups][16]: what a product starts from
  // One group at a time: it stays in the first-level cache while all queries pass.
  uint8_t* k;        // [kTileKeys][kCacheGroup], as dot_key takes them
  float* k_scales;   // [kTileKeys]
  int32_t* v;        // [kPairs][kCacheGroup]: codes of two keys, the first in the low half
  float* v_factors;  // [kTileKeys]: a key's scale / the largest of the tile * kWeightMost

  explicit Int8Panels(const AttentionTask& task) : keys(task.k, task.qk_dim), values(task.v, task.v_dim) {
    Work work{task.work};
    lanes = take_lanes(task, values.count * kCacheGroup, values.shift, work);
    const int64_t query_groups = lanes.queries * keys.count;
    q = reinterpret_cast<int8_t*>(work.take(query_groups * kCacheGroup / 4));
    q_scales = work.take(query_groups);
    q_start = reinterpret_cast<int32_t*>(work.take(query_groups));
    k = reinterpret_cast<uint8_t*>(work.take(kTileKeys * kCacheGroup / 4));
    k_scales = work.take(kTileKeys);
    v = reinterpret_cast<int32_t*>(work.take(kPairs * kCacheGroup));
    v_factors = work.take(kTileKeys);
  }
};

// Keys [start, start + n) of the run and the numbers of their rows.
struct TileNumbers {
  int64_t start, n;
  int64_t rows[kTileKeys];

  void locate(const AttentionTask& task, int64_t from, int64_t end) {
    start = from;
    n = end - from < kTileKeys ? (end - from < 0 ? 0 : end - from) : kTileKeys;
    locate_rows(task, start, n, rows);
  }
};

DEEPMNN_INLINE void store_i32(void* p, I32x16 a) { store(static_cast<float*>(p), from_bits(a)); }

DEEPMNN_INLINE F32x16 inverse_of(F32x16 steps) {
  float each[16];
  store(each, steps);
  for (float& step : each) step = inverse_of(step);
  return load(each);
}

// One group of 16 queries: columns [0, kCacheGroup) of x [16][kCacheGroup].
inline void pack_query_group(const float* x, float factor, int8_t* codes, float* scales, int32_t* start) {
  alignas(64) float columns[kCacheGroup][16];
  I32x16 top = splat_i32(0);  // magnitudes compare like their bits
  for (int64_t d = 0; d < kCacheGroup; d += 16) {
    F32x16 rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = load(x + i * kCacheGroup + d);
    transpose(rows);
    for (int i = 0; i < 16; ++i) {
      store(columns[d + i], rows[i]);
      top = max(top, bits(rows[i]) & splat_i32(0x7fffffff));
    }
  }
  const F32x16 step = from_bits(top) / splat(127.0f), inverse = inverse_of(step), zero = splat(0.0f);
  I32x16 sums = splat_i32(0);
  for (int64_t d = 0; d < kCacheGroup; d += 4, codes += 64) {
    I32x16 four = splat_i32(0);
    DEEPMNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const F32x16 scaled = select_less(zero, inverse, load(columns[d + i]) * inverse, zero);
      const I32x16 code = to_int(min(splat(127.0f), max(splat(-127.0f), scaled)));
      sums = sums + code;
      four = four + shift_left(code & splat_i32(0xff), 8 * i);
    }
    store_i32(codes, four);
  }
  store(scales, step * splat(factor));
  store_i32(start, kKeyBiased ? splat_i32(0) - shift_left(sums, 7) : splat_i32(0));
}

// Group g of all queries.
inline void pack_int8_queries(const AttentionTask& task, const Int8Panels& panels, int64_t g) {
  const Groups& groups = panels.keys;
  // Columns of a query that lie in this group, and where.
  const int64_t before = g == 0 ? groups.shift : 0, n = groups.cols(g) - before;
  const int64_t from = g * kCacheGroup + before - groups.shift;
  for (int64_t first = 0; first < panels.lanes.queries; first += 16) {
    alignas(64) float x[16 * kCacheGroup] = {};
    for (int64_t i = 0; i < 16 && first + i < task.n_queries; ++i) {
      __builtin_memcpy(x + i * kCacheGroup + before, task.q + (first + i) * task.q_stride + from,
                       static_cast<uint64_t>(n) * sizeof(float));
    }
    const int64_t at = first * groups.count + 16 * g;
    pack_query_group(x, task.scale, panels.q + at * kCacheGroup, panels.q_scales + at, panels.q_start + at);
  }
}

// Group g of a row: kCacheGroup codes, zeros after the head's last column.
DEEPMNN_INLINE const uint8_t* group_codes(const uint8_t* row, const Groups& groups, int64_t g, uint8_t* room) {
  const uint8_t* from = row + (groups.first + g) * kCacheGroup;
  const int64_t n = groups.cols(g);
  if (n == kCacheGroup) return from;
  __builtin_memset(room, 0, kCacheGroup);
  __builtin_memcpy(room, from, static_cast<uint64_t>(n));
  return room;
}

DEEPMNN_INLINE float group_scale_of(const uint8_t* row, const CacheRows& rows, const Groups& groups, int64_t g) {
  return reinterpret_cast<const float*>(row + rows.scales)[groups.first + g];
}

// Asks for rows [begin, end) of a tile that comes later.
inline void ask_for(const CacheRows& rows, const Groups& groups, const TileNumbers& tile, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const uint8_t* row = rows.data + tile.rows[i] * rows.row_nbytes;
    for (int64_t g = 0; g < groups.count; ++g) prefetch_far(row + (groups.first + g) * kCacheGroup);
    prefetch_far(row + rows.scales + 4 * groups.first);
  }
}

// One of `parts` equal parts of it, so that memory is asked between pieces of work.
inline void ask_for_part(const AttentionTask& task, const Int8Panels& panels, const TileNumbers& tile, int64_t part,
                         int64_t parts) {
  const int64_t begin = tile.n * part / parts, end = tile.n * (part + 1) / parts;
  ask_for(task.k, panels.keys, tile, begin, end);
  if (!task.values_in_keys) ask_for(task.v, panels.values, tile, begin, end);
}

// Group g of the tile's keys, then of its first key again up to `padded`.
inline void fill_keys(const CacheRows& rows, const TileNumbers& tile, int64_t padded, int64_t g,
                      const Int8Panels& panels) {
  for (int64_t key = 0; key < padded; ++key) {
    const uint8_t* row = rows.data + tile.rows[key < tile.n ? key : 0] * rows.row_nbytes;
    uint8_t room[kCacheGroup];
    store_u8(panels.k + key * kCacheGroup, key_codes(load_u8(group_codes(row, panels.keys, g, room))));
    panels.k_scales[key] = group_scale_of(row, rows, panels.keys, g);
  }
}

// Group g of the tile's values in pairs of keys, and their factors: 0 for the key that makes them even. Returns
// the largest scale / kWeightMost.
inline float fill_values(const CacheRows& rows, const TileNumbers& tile, int64_t g, const Int8Panels& panels) {
  float* factors = panels.v_factors;
  int32_t* to = panels.v;
  for (int64_t key = 0; key < tile.n; key += 2, to += kCacheGroup) {
    const int64_t other = key + 1 < tile.n ? key + 1 : key;
    const uint8_t* first = rows.data + tile.rows[key] * rows.row_nbytes;
    const uint8_t* second = rows.data + tile.rows[other] * rows.row_nbytes;
    uint8_t rooms[2][kCacheGroup];
    const int8_t* a = reinterpret_cast<const int8_t*>(group_codes(first, panels.values, g, rooms[0]));
    const int8_t* b = reinterpret_cast<const int8_t*>(group_codes(second, panels.values, g, rooms[1]));
    DEEPMNN_UNROLL
    for (int d = 0; d < kCacheGroup; d += 16) {
      store_i32(to + d, (widen_i8(a + d) & splat_i32(0xffff)) + shift_left(widen_i8(b + d), 16));
    }
    factors[key + 1] = group_scale_of(second, rows, panels.values, g);
    factors[key] = group_scale_of(first, rows, panels.values, g);
  }
  for (int64_t key = tile.n; key < kTileKeys; ++key) factors[key] = 0.0f;
  I32x16 top = splat_i32(0);  // scales are not negative, so they compare like their bits; NaN is the largest
  for (int64_t key = 0; key < kTileKeys; key += 16) top = max(top, bits(load(factors + key)));
  const int32_t most_bits = max_lane(top);
  float most;
  __builtin_memcpy(&most, &most_bits, sizeof(most));
  const F32x16 inverse = splat(most > 0.0f ? kWeightMost / most : 0.0f);
  for (int64_t key = 0; key < kTileKeys; key += 16) store(factors + key, load(factors + key) * inverse);
  return most / kWeightMost;
}

// Adds group g of the scores of 16 queries from `first` on and kKeys keys from `key` on.
template <int kKeys>
void add_scores(const Int8Panels& panels, int64_t first, int64_t g, int64_t key) {
  float* to = panels.lanes.weights + first * kTileKeys + 16 * key;
  const int64_t at = first * panels.keys.count + 16 * g;
  const uint8_t* q = reinterpret_cast<const uint8_t*>(panels.q + at * kCacheGroup);
  const uint8_t* k = panels.k + key * kCacheGroup;
  const I32x16 start = load_i32(panels.q_start + at);
  I32x16 acc[kKeys];
  DEEPMNN_UNROLL
  for (int i = 0; i < kKeys; ++i) acc[i] = start;
  DEEPMNN_UNROLL
  for (int step = 0; step < kCacheGroup / 4; ++step) {
    const U8x64 query = load_u8(q + 64 * step);
    DEEPMNN_UNROLL
    for (int i = 0; i < kKeys; ++i) acc[i] = dot_key(acc[i], query, k + i * kCacheGroup + 4 * step);
  }
  const F32x16 query_scale = load(panels.q_scales + at);
  DEEPMNN_UNROLL
  for (int i = 0; i < kKeys; ++i) {
    const F32x16 before = g == 0 ? splat(0.0f) : load(to + 16 * i);
    store(to + 16 * i, fma(to_float(acc[i]), query_scale * splat(panels.k_scales[key + i]), before));
  }
}

// Integer weights of 16 queries: [pairs][16], two keys in the halves; then zeros to `padded` pairs.
inline void pack_weights(const Int8Panels& panels, int64_t first, int64_t pairs, int64_t padded, int32_t* to) {
  const float* weights = panels.lanes.weights + first * kTileKeys;
  const float* factors = panels.v_factors;
  for (int64_t pair = 0; pair < pairs; ++pair, weights += 32, factors += 2, to += 16) {
    const I32x16 a = to_int(load(weights) * splat(factors[0])), b = to_int(load(weights + 16) * splat(factors[1]));
    store_i32(to, a + shift_left(b, 16));
  }
  for (int64_t pair = pairs; pair < padded; ++pair, to += 16) store_i32(to, splat_i32(0));
}

// kQueries × kVectors of the output: out = out * factor + unit * gain * sum over pairs of weight * value, where `col`
// is a column of the group in the panel and `out_col` the same one of the output.
template <int kQueries, int kVectors>
DEEPMNN_INLINE void add_pairs_of_values(const Int8Panels& panels, const int32_t* weights, int64_t pairs, float unit,
                                        int64_t query, int64_t col, int64_t out_col) {
  I32x16 acc[kQueries][kVectors];
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) acc[i][c] = splat_i32(0);
  }
  const int32_t* v = panels.v + col;
  for (int64_t pair = 0; pair < pairs; pair += kPairStep, v += kPairStep * kCacheGroup, weights += kPairStep * 16) {
    DEEPMNN_UNROLL
    for (int j = 0; j < kPairStep; ++j) {
      I32x16 value[kVectors];
      DEEPMNN_UNROLL
      for (int c = 0; c < kVectors; ++c) value[c] = load_i32(v + j * kCacheGroup + 16 * c);
      DEEPMNN_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const I32x16 weight = splat_i32(weights[16 * j + i]);
        DEEPMNN_UNROLL
        for (int c = 0; c < kVectors; ++c) acc[i][c] = dot_pairs(acc[i][c], weight, value[c]);
      }
    }
  }
  float* out = output_at(panels.lanes, query, out_col);
  DEEPMNN_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    const F32x16 factor = splat(panels.lanes.factor[query + i]);
    const F32x16 gain = splat(panels.lanes.gain[query + i] * unit);
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) {
      float* at = out + 32 * i + 16 * c;
      store(at, fma(to_float(acc[i][c]), gain, load(at) * factor));
    }
  }
}

// All queries against a tile of keys, group by group; meanwhile the rows of the next tile come nearer.
inline void attend_int8_tile(const AttentionTask& task, const Int8Panels& panels, const TileNumbers& tile,
                             const TileNumbers& next) {
  constexpr int kKeys = kScoreKeys * kScoreVectors;
  const Lanes& lanes = panels.lanes;
  const int64_t parts = panels.keys.count + panels.values.count;
  for (int64_t g = 0; g < panels.keys.count; ++g) {
    fill_keys(task.k, tile, round_up(tile.n, kKeys), g, panels);
    ask_for_part(task, panels, next, g, parts);
    for (int64_t first = 0; first < lanes.queries; first += 16) {
      const int64_t found = inside(seen_by(lanes, first).most, tile.start, tile.n);
      for (int64_t key = 0; key < found; key += kKeys) add_scores<kKeys>(panels, first, g, key);
    }
  }
  for (int64_t first = 0; first < lanes.queries; first += 16) {
    const Seen seen = seen_by(lanes, first);
    const int64_t found = inside(seen.most, tile.start, tile.n);
    if (found == 0) continue;
    update_lanes<Base::tile>(lanes, first, tile.start, found, seen.least < tile.start + found);
    if (found % 2) store(lanes.weights + first * kTileKeys + 16 * found, splat(0.0f));
  }
  for (int64_t g = 0; g < panels.values.count; ++g) {
    const float unit = fill_values(task.v, tile, g, panels);
    ask_for_part(task, panels, next, panels.keys.count + g, parts);
    for (int64_t first = 0; first < lanes.queries; first += 16) {
      const int64_t pairs = (inside(seen_by(lanes, first).most, tile.start, tile.n) + 1) / 2;
      if (pairs == 0) continue;
      const int64_t padded = round_up(pairs, kPairStep);
      alignas(64) int32_t weights[kPairs * 16];
      pack_weights(panels, first, pairs, padded, weights);
      for (int64_t col = 0; col < kCacheGroup; col += 16 * kValueVectors) {
        for (int64_t i = 0; i < 16 && first + i < task.n_queries; i += kValueQueries) {
          add_pairs_of_values<kValueQueries, kValueVectors>(panels, weights + i, padded, unit, first + i, col,
                                                            g * kCacheGroup + col);
        }
      }
    }
  }
}

inline void attend_int8(const AttentionTask& task) {
  const Int8Panels panels(task);
  read_state(task, panels.lanes);
  const int64_t most = seen_keys(task, panels.lanes);
  TileNumbers tiles[2];
  tiles[0].locate(task, 0, most);
  for (int64_t g = 0; g < panels.keys.count; ++g) {
    ask_for_part(task, panels, tiles[0], g, panels.keys.count);
    pack_int8_queries(task, panels, g);
  }
  for (int64_t start = 0, now = 0; start < most; start += kTileKeys, now ^= 1) {
    tiles[now ^ 1].locate(task, start + kTileKeys, most);
    attend_int8_tile(task, panels, tiles[now], tiles[now ^ 1]);
  }
  write_state(task, panels.lanes);
}

}  // namespace deepmnn::DEEPMNN_NS
