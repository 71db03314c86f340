// Which rows of its sequence a token attends to: those that an indexer scores highest (docs/ops.md, select_keys). What
// is chosen depends on the token and its keys alone, never on the step's other tokens or the threads.
#pragma once

#include "ops/attend.h"

namespace deepmnn {

// Sizes that all jobs of an op share.
struct IndexShape {
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t top_k = 0;
  int64_t ratio = 1;        // every ratio-th row is a key
  bool whole_rows = false;  // the keys lie one after another: k has no rows between them
  float scale = 1.0f;

  // Keys among the first `rows` rows of a sequence.
  int64_t keys(int64_t rows) const { return rows / ratio; }
};

// One sequence's new tokens, which lie one after another.
struct IndexJob {
  CacheType type = CacheType::f32;
  CacheRows k;
  const int32_t* table = nullptr;  // as KeyRows has it
  int64_t block_size = 1;
  const float* q = nullptr;        // [tokens, heads, dim], rotated where the rows are
  const float* weights = nullptr;  // [tokens, heads]
  int64_t tokens = 0;
  int64_t history = 0;
  int32_t* rows = nullptr;  // [tokens, top_k]: ascending, -1 behind the last
};

void select_keys(Step& step, const IndexShape& shape, const IndexJob& job);

}  // namespace deepmnn
