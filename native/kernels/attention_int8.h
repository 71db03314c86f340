// Attention over an int8 cache in integers. Here queries, keys, values and outputs are all rotated (rotate_heads.h),
// which this arithmetic need not know. Queries are quantised like activations, one scale per group of the cache's
// columns, so a score is a sum over groups of exact int32 products, each times both scales: what w8 does in linear.h.
// Values keep their codes; weights, relative to the tile's largest, times a key's scale become 15-bit integers, so an
// output is an exact int32 sum over the tile's keys times one scale per group.
//
// Beside float arithmetic on the same cache: a query's element is off by at most 1/254 of the largest of its group, a
// weight by at most 1/65534 of the tile's largest weight times the largest scale of the group (all keys of a tile
// together: 0.2 % of that).
#pragma once

#include "kernels/attention_int8_scores.h"
#include "kernels/attention_int8_values.h"

namespace deepmnn::DEEPMNN_NS {

// Lane i is the largest lane of v[i].
DEEPMNN_INLINE F32x16 maxima(F32x16 (&v)[16]) {
  transpose(v);
  DEEPMNN_UNROLL
  for (int step = 8; step > 0; step /= 2) {
    DEEPMNN_UNROLL
    for (int i = 0; i < step; ++i) v[i] = max(v[i], v[i + step]);
  }
  return v[0];
}

// Scores of a tile of 16 * kVectors keys become weights exp(score - the tile's largest), 0 for keys that a query does
// not see; maximum and sum are brought up to date. Of n queries from `first` on, at most 16.
template <int kVectors>
void update_weights(const Lanes& lanes, const KeyTile& tile, int64_t first, int64_t n) {
  static constexpr int32_t kOrder[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32x16 lowest = splat(-__builtin_inff()), floor = splat(-3.0e38f);  // -inf - -inf is no number
  float* const weights = lanes.weights + first * kInt8Keys;
  F32x16 each[16];
  for (int64_t i = n; i < 16; ++i) each[i] = lowest;
  for (int64_t i = 0; i < n; ++i) {
    float* scores = weights + i * kInt8Keys;
    const int64_t seen = inside(lanes.limits[first + i], tile.start, tile.n);
    for (int64_t key = seen / 16 * 16; key < 16 * kVectors; key += 16) {
      const I32x16 left = splat_i32(static_cast<int32_t>(seen - key));
      store(scores + key, from_bits(select_greater(left, load_i32(kOrder), bits(load(scores + key)), bits(lowest))));
    }
    F32x16 top = load(scores);
    DEEPMNN_UNROLL
    for (int c = 1; c < kVectors; ++c) top = max(top, load(scores + 16 * c));
    each[i] = top;
  }
  const F32x16 old = load(lanes.maximum + first), found = maxima(each);
  const F32x16 top = max(old, found), from = max(top, floor);
  alignas(64) float bases[16];
  store(bases, max(found, floor));
  for (int64_t i = n; i < 16; ++i) each[i] = splat(0.0f);
  for (int64_t i = 0; i < n; ++i) {
    float* scores = weights + i * kInt8Keys;
    const F32x16 base = splat(bases[i]);
    F32x16 total = splat(0.0f);
    DEEPMNN_UNROLL
    for (int c = 0; c < kVectors; ++c) {
      const F32x16 weight = exp_below(load(scores + 16 * c) - base);
      store(scores + 16 * c, weight);
      total = total + weight;
    }
    each[i] = total;
  }
  const F32x16 factor = exp_below(old - from), gain = exp_below(found - from);
  store(lanes.maximum + first, top);
  store(lanes.sum + first, fma(load(lanes.sum + first), factor, sums(each) * gain));
  store(lanes.factor + first, factor);
  store(lanes.gain + first, gain);
}

// All queries against a tile of keys, group by group; meanwhile the rows of the next tile come nearer.
inline void attend_int8_tile(const AttentionTask& task, const Int8Strips& strips, const KeyTile& tile,
                             const KeyTile& next) {
  const Lanes& lanes = strips.lanes;
  Asks asks{task, strips, next, strips.tiles.count * (strips.keys.count + strips.values.count)};
  // Calls function(number of queries, first query, keys) for every register tile that sees keys of this tile; they are
  // rounded up to whole vectors.
  const auto for_tiles = [&](auto&& function) {
    for (int64_t t = 0; t < strips.tiles.count; ++t) {
      const int64_t first = strips.tiles.first(t), size = strips.tiles.size(t);
      int64_t most = 0;
      for (int64_t i = first; i < first + size; ++i) most = lanes.limits[i] > most ? lanes.limits[i] : most;
      const int64_t keys = round_up(inside(most, tile.start, tile.n), 16);
      asks.next();
      if (keys) with_count<1, kInt8Queries>(size, [&](auto count) { function(count, first, keys); });
    }
  };
  fill_scales(task.k, strips.keys, tile.k, tile.n, strips.k_scales);
  if (!task.values_in_keys) fill_scales(task.v, strips.values, tile.v, tile.n, strips.v_scales);
  for (int64_t g = 0; g < strips.keys.count; ++g) {
    fill_keys(tile, g, strips);
    for_tiles([&](auto count, int64_t first, int64_t keys) { add_scores<count.value>(strips, first, g, keys); });
  }
  with_count<1, kInt8Keys / 16>(round_up(tile.n, 16) / 16, [&](auto vectors) {
    for (int64_t first = 0; first < task.n_queries; first += 16) {
      const int64_t left = task.n_queries - first;
      update_weights<vectors.value>(lanes, tile, first, left < 16 ? left : 16);
    }
  });
  for (int64_t g = 0; g < strips.values.count; ++g) {
    fill_values(tile, g, strips);
    const float unit = fill_factors(strips.v_scales + g * kInt8Keys, tile.n, strips.v_factors);
    for_tiles([&](auto count, int64_t first, int64_t keys) { add_values<count.value>(strips, first, g, keys, unit); });
  }
}

inline void attend_int8(const AttentionTask& task) {
  const Int8Strips strips(task);
  read_state(task, strips.lanes);
  const int64_t most = seen_keys(task, strips.lanes);
  const int64_t asked = most == task.n_keys ? most + task.keys_ahead : most;
  KeyTile tiles[2];
  tiles[0].locate(task, 0, most);
  Asks asks{task, strips, tiles[0], strips.keys.count};
  for (int64_t g = 0; g < strips.keys.count; ++g) {
    asks.next();
    pack_queries(task, strips, g);
  }
  for (int64_t start = 0, now = 0; start < most; start += kInt8Keys, now ^= 1) {
    tiles[now ^ 1].locate(task, start + kInt8Keys, asked);
    attend_int8_tile(task, strips, tiles[now], tiles[now ^ 1]);
  }
  write_state(task, strips.lanes);
}

}  // namespace deepmnn::DEEPMNN_NS
