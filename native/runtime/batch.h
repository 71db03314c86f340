// The new tokens of one step, all sequences concatenated, and where their history lies (backends/base.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/kv_cache.h"

namespace deepmnn {

struct Batch {
  const int32_t* ids = nullptr;              // [tokens]
  const int32_t* positions = nullptr;        // [tokens]
  const int32_t* sequence_starts = nullptr;  // [sequences + 1]
  const int32_t* context_lengths = nullptr;  // [sequences] new tokens included
  const int32_t* block_tables = nullptr;     // [sequences, table_width], -1: unused
  const int32_t* logit_rows = nullptr;       // [rows]
  int64_t tokens = 0;
  int64_t sequences = 0;
  int64_t table_width = 0;
  int64_t rows = 0;

  // Sequence s has `tokens_of(s)` new tokens after `history(s)` cached rows.
  int64_t tokens_of(int64_t s) const { return sequence_starts[s + 1] - sequence_starts[s]; }
  int64_t history(int64_t s) const { return context_lengths[s] - tokens_of(s); }
  const int32_t* table(int64_t s) const { return block_tables + s * table_width; }
  // Rows of the sequence that has the most, new tokens included.
  int64_t longest() const { return *std::max_element(context_lengths, context_lengths + sequences); }
};

// Throws Error("request") unless a step over this batch stays inside the vocabulary and the cache and no sequence
// writes to a block that another table entry uses. block_uses is [cache.blocks()] zeros, and is left so.
void check_batch(const Batch& batch, const KvCache& cache, int64_t vocab_size, std::vector<int32_t>& block_uses);

}  // namespace deepmnn
