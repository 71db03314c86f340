#include "runtime/batch.h"

#include <algorithm>
#include <string>

#include "runtime/fail.h"

namespace deepmnn {
namespace {

// All of values[0 .. n) must be in [low, high].
void check_range(const int32_t* values, int64_t n, int64_t low, int64_t high, const char* what) {
  for (int64_t i = 0; i < n; ++i) {
    if (values[i] < low || values[i] > high) {
      fail_request(std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]),
                   std::to_string(low) + " to " + std::to_string(high));
    }
  }
}

void check_sequences(const Batch& batch) {
  if (batch.tokens < 1) fail_request("a step without tokens", "at least one new token");
  if (batch.tokens > INT32_MAX) fail_request("a step of " + std::to_string(batch.tokens) + " tokens", "less than 2^31");
  if (batch.sequences < 1) fail_request("a step without sequences", "at least one sequence");
  const int32_t* starts = batch.sequence_starts;
  if (starts[0] != 0 || starts[batch.sequences] != batch.tokens) {
    fail_request("sequence_starts from " + std::to_string(starts[0]) + " to " + std::to_string(starts[batch.sequences]),
                 "from 0 to the " + std::to_string(batch.tokens) + " tokens of the step");
  }
  for (int64_t s = 0; s < batch.sequences; ++s) {
    if (starts[s + 1] <= starts[s]) {
      fail_request("sequence " + std::to_string(s) + " has no new token", "at least one in each sequence");
    }
  }
}

int64_t blocks_needed(int64_t rows, int64_t block_size) { return (rows + block_size - 1) / block_size; }

// The rows that the sequence's new tokens read and write must have a place.
void check_recent(const Batch& batch, const KvCache& cache, int64_t s, int64_t needed) {
  if (cache.window() == 0) return;
  const int64_t first = std::max<int64_t>(0, batch.history(s) + 1 - cache.window());
  for (int64_t i = first / cache.block_size(); i < needed; ++i) {
    if (cache.recent(batch.table(s)[i]) >= 0) continue;
    fail_request("sequence " + std::to_string(s) + " has no recent rows in its block " + std::to_string(i),
                 "rows of the last " + std::to_string(cache.window()) + " tokens");
  }
}

void check_tables(const Batch& batch, const KvCache& cache) {
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t length = batch.context_lengths[s];
    const std::string who = "sequence " + std::to_string(s);
    if (batch.history(s) < 0) {
      fail_request(
          who + " brings " + std::to_string(batch.tokens_of(s)) + " tokens to a context of " + std::to_string(length),
          "a context length that counts the new tokens");
    }
    const int64_t needed = blocks_needed(length, cache.block_size());
    if (needed > batch.table_width) {
      fail_request(who + " has " + std::to_string(batch.table_width) + " cache blocks",
                   std::to_string(needed) + " for its " + std::to_string(length) + " rows");
    }
    check_range(batch.table(s), needed, 0, cache.blocks() - 1, "block_tables");
    check_recent(batch, cache, s, needed);
  }
}

// Two sequences may read one block (a shared prefix), but nobody may write to it then.
void check_writes(const Batch& batch, const KvCache& cache, std::vector<int32_t>& block_uses) {
  const int64_t size = cache.block_size();
  const auto count = [&](int32_t by) {
    for (int64_t s = 0; s < batch.sequences; ++s) {
      const int64_t needed = blocks_needed(batch.context_lengths[s], size);
      for (int64_t i = 0; i < needed; ++i) block_uses[static_cast<size_t>(batch.table(s)[i])] += by;
    }
  };
  count(1);
  int64_t shared = -1;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t needed = blocks_needed(batch.context_lengths[s], size);
    for (int64_t i = batch.history(s) / size; i < needed; ++i) {
      if (block_uses[static_cast<size_t>(batch.table(s)[i])] > 1) shared = batch.table(s)[i];
    }
  }
  count(-1);
  if (shared >= 0) fail_request("cache block " + std::to_string(shared) + " is written to and shared", "a copy of it");
}

}  // namespace

void check_batch(const Batch& batch, const KvCache& cache, int64_t vocab_size, std::vector<int32_t>& block_uses) {
  check_sequences(batch);
  check_range(batch.ids, batch.tokens, 0, vocab_size - 1, "token id: ids");
  check_range(batch.positions, batch.tokens, 0, INT32_MAX, "positions");
  check_range(batch.logit_rows, batch.rows, 0, batch.tokens - 1, "logit_rows");
  check_tables(batch, cache);
  check_writes(batch, cache, block_uses);
}

}  // namespace deepmnn
