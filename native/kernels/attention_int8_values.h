// Values of an int8 cache times weights. 16 columns are the lanes of a vector, each with the codes of two keys: every
// query's weights of the two are broadcast against them.
#pragma once

#include "kernels/attention_int8_tile.h"

namespace deepmnn::DEEPMNN_NS {

constexpr float kWeightMost = 32767.0f;
constexpr int kBlockPairs = 8;  // 16 keys: pairs of straight code

// Group g of the tile's values in pairs of keys; the last key makes them even.
inline void fill_values(const KeyTile& tile, int64_t g, const Int8Strips& strips) {
  int32_t* to = strips.v;
  for (int64_t key = 0; key < tile.n; key += 2, to += kCacheGroup) {
    int8_t rooms[2][kCacheGroup];
    const int8_t* a = strips.values.codes(tile.v[key], g, rooms[0]);
    const int8_t* b = strips.values.codes(tile.v[key + 1 < tile.n ? key + 1 : key], g, rooms[1]);
    DEEPMNN_UNROLL
    for (int d = 0; d < kCacheGroup; d += 16) store_i32(to + d, pair_i8(a + d, b + d));
  }
}

// What the n keys' weights are multiplied with to become integers. Returns the largest scale / kWeightMost.
inline float fill_factors(const float* scales, int64_t n, float* factors) {
  I32x16 top = splat_i32(0);  // scales are not negative, so they compare like their bits; NaN is the largest
  for (int64_t key = 0; key < n; key += 16) top = max(top, bits(load(scales + key)));
  const int32_t most_bits = max_lane(top);
  float most;
  __builtin_memcpy(&most, &most_bits, sizeof(most));
  const F32x16 inverse = splat(most > 0.0f ? kWeightMost / most : 0.0f);
  for (int64_t key = 0; key < n; key += 16) store(factors + key, load(scales + key) * inverse);
  return most / kWeightMost;
}

// Group g of the outputs of kQueries queries: out = out * factor + unit * gain * sum over keys of weight * value. Keys
// are whole vectors; a weight after the last key is 0.
template <int kQueries>
void add_values(const Int8Strips& strips, int64_t first, int64_t g, int64_t keys, float unit) {
  float* out = output_at(strips.lanes, first, g * kCacheGroup);
  const int64_t slice = output_at(strips.lanes, first, g * kCacheGroup + 32) - out;
  for (int i = 0; i < kQueries * 32; i += 16) {
    prefetch(out + i);
    prefetch(out + slice + i);
  }
  alignas(64) uint16_t weights[kInt8Keys * kQueries];  // [vectors of keys][queries][16]
  uint16_t* to = weights;
  for (int64_t key = 0; key < keys; key += 16) {
    const F32x16 factors = load(strips.v_factors + key);
    DEEPMNN_UNROLL
    for (int i = 0; i < kQueries; ++i, to += 16) {
      store_u16(to, to_int(load(strips.lanes.weights + (first + i) * kInt8Keys + key) * factors));
    }
  }
  for (int64_t col = 0; col < kCacheGroup; col += 16 * kInt8Vectors) {
    I32x16 acc[kQueries][kInt8Vectors];
    DEEPMNN_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      DEEPMNN_UNROLL
      for (int c = 0; c < kInt8Vectors; ++c) acc[i][c] = splat_i32(0);
    }
    const int32_t* v = strips.v + col;
    const uint16_t* w = weights;
    for (int64_t key = 0; key < keys; key += 16, v += kBlockPairs * kCacheGroup, w += 16 * kQueries) {
      DEEPMNN_UNROLL
      for (int pair = 0; pair < kBlockPairs; ++pair) {
        I32x16 values[kInt8Vectors];
        DEEPMNN_UNROLL
        for (int c = 0; c < kInt8Vectors; ++c) values[c] = load_i32(v + pair * kCacheGroup + 16 * c);
        DEEPMNN_UNROLL
        for (int i = 0; i < kQueries; ++i) {
          const I32x16 weight = splat_four(w + 16 * i + 2 * pair);
          DEEPMNN_UNROLL
          for (int c = 0; c < kInt8Vectors; ++c) acc[i][c] = dot_pairs(acc[i][c], weight, values[c]);
        }
      }
    }
    DEEPMNN_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const F32x16 factor = splat(strips.lanes.factor[first + i]), gain = splat(strips.lanes.gain[first + i] * unit);
      DEEPMNN_UNROLL
      for (int c = 0; c < kInt8Vectors; ++c) {
        float* at = out + (col / 16 + c) / 2 * slice + 32 * i + (col / 16 + c) % 2 * 16;
        store(at, fma(to_float(acc[i][c]), gain, load(at) * factor));
      }
    }
  }
}

}  // namespace deepmnn::DEEPMNN_NS
