// Attention over an int8 cache: a tile of keys, and the queries that pass it.
#pragma once

#include "kernels/attention_lanes.h"
#include "kernels/tiles.h"

namespace deepmnn::DEEPMNN_NS {

// A register tile: queries × vectors of 16 keys (scores) or of 16 columns (values).
constexpr int kInt8Queries = kVectorRegisters >= 32 ? 6 : 4;
constexpr int kInt8Vectors = kVectorRegisters >= 32 ? 4 : 1;

// Keys of a tile: all queries' outputs are read and written once for each.
constexpr int64_t kInt8Keys = 128;

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

  // Group g of a row: kCacheGroup codes, zeros after the head's last column.
  const int8_t* codes(const uint8_t* row, int64_t g, int8_t* room) const {
    const int8_t* from = reinterpret_cast<const int8_t*>(row) + (first + g) * kCacheGroup;
    const int64_t n = cols(g);
    if (n == kCacheGroup) return from;
    __builtin_memset(room, 0, kCacheGroup);
    __builtin_memcpy(room, from, static_cast<uint64_t>(n));
    return room;
  }
};

// Keys [start, start + n) of the run, n at most kInt8Keys.
struct KeyTile {
  int64_t start, n;
  const uint8_t* k[kInt8Keys];  // rows
  const uint8_t* v[kInt8Keys];

  void locate(const AttentionTask& task, int64_t from, int64_t end) {
    start = from;
    n = end - from < kInt8Keys ? (end - from < 0 ? 0 : end - from) : kInt8Keys;
    int64_t numbers[kInt8Keys];
    locate_rows(task, start, n, numbers);
    for (int64_t i = 0; i < n; ++i) {
      k[i] = task.k.data + numbers[i] * task.k.row_nbytes;
      v[i] = task.v.data + numbers[i] * task.v.row_nbytes;
    }
  }
};

struct Int8Strips {
  Lanes lanes;  // its weights: [queries][kInt8Keys]
  Groups keys, values;
  EvenTiles<kInt8Queries> tiles;
  // Of all queries, padded to whole vectors.
  int8_t* q;         // [groups][fours of columns][queries][4]
  float* q_scales;   // [groups][queries]
  int32_t* q_start;  // [groups][queries]: what a product starts from
  float* k_scales;   // [groups][kInt8Keys], 0 from the last key to the end of its vector
  float* v_scales;   // the same of the values
  // One group at a time: it stays in the first-level cache while all queries pass.
  uint8_t* k;        // [vectors of 16 keys][fours of columns][16][4], as dot_key takes them
  int32_t* v;        // [pairs of keys][kCacheGroup]: two codes, the first key's in the low half
  float* v_factors;  // [kInt8Keys]: a key's scale / the largest of the tile * kWeightMost

  explicit Int8Strips(const AttentionTask& task)
      : keys(task.k, task.qk_dim), values(task.v, task.v_dim), tiles(task.n_queries) {
    Work work{task.work};
    lanes = take_lanes(task, kInt8Keys, values.count * kCacheGroup, values.shift, work);
    k = reinterpret_cast<uint8_t*>(work.take(kInt8Keys * kCacheGroup / 4));
    v = reinterpret_cast<int32_t*>(work.take(kInt8Keys / 2 * kCacheGroup));
    k_scales = work.take(keys.count * kInt8Keys);
    v_scales = task.values_in_keys ? k_scales : work.take(values.count * kInt8Keys);
    v_factors = work.take(kInt8Keys);
    q = reinterpret_cast<int8_t*>(work.take(lanes.queries * keys.count * kCacheGroup / 4));
    q_scales = work.take(lanes.queries * keys.count);
    q_start = reinterpret_cast<int32_t*>(work.take(lanes.queries * keys.count));
  }
};

DEEPMNN_INLINE I32x16 splat_four(const void* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  return splat_i32(four);
}

DEEPMNN_INLINE void store_i32(void* p, I32x16 a) { store(static_cast<float*>(p), from_bits(a)); }

// The scales of all groups of n keys, [groups][kInt8Keys].
inline void fill_scales(const CacheRows& rows, const Groups& groups, const uint8_t* const* row, int64_t n,
                        float* scales) {
  for (int64_t first = 0; first < groups.count; first += 16, scales += 16 * kInt8Keys) {
    const int64_t lanes = groups.count - first < 16 ? groups.count - first : 16;
    for (int64_t key = 0; key < n; key += 16) {
      F32x16 keys[16];
      for (int64_t i = 0; i < 16; ++i) {
        keys[i] = splat(0.0f);
        if (key + i >= n) continue;
        keys[i] = load(reinterpret_cast<const float*>(row[key + i] + rows.scales) + groups.first + first, lanes);
      }
      transpose(keys);
      for (int64_t g = 0; g < lanes; ++g) store(scales + g * kInt8Keys + key, keys[g]);
    }
  }
}

// Asks for the rows of a tile that comes later, a few at each of `parts` calls: memory takes only so many requests at
// once.
struct Asks {
  const AttentionTask& task;
  const Int8Strips& strips;
  const KeyTile& tile;
  int64_t parts;
  int64_t due = 0, row = 0;

  void next() {
    for (due += tile.n; due >= parts; due -= parts, ++row) {
      ask(task.k, strips.keys, tile.k[row]);
      if (!task.values_in_keys) ask(task.v, strips.values, tile.v[row]);
    }
  }

 private:
  static void ask(const CacheRows& rows, const Groups& groups, const uint8_t* row) {
    for (int64_t g = 0; g < groups.count; ++g) prefetch_far(row + (groups.first + g) * kCacheGroup);
    prefetch_far(row + rows.scales + 4 * groups.first);
  }
};

}  // namespace deepmnn::DEEPMNN_NS
