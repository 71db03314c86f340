// What an op sees while a step runs: the batch, its buffers, and the shared machinery.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "runtime/batch.h"
#include "runtime/kv_cache.h"
#include "runtime/memory.h"
#include "runtime/op.h"
#include "runtime/quantized.h"
#include "runtime/rope_tables.h"
#include "runtime/thread_pool.h"
#include "runtime/weight_store.h"

namespace deepmnn {

// How mla_attention computes: by counting operations for each sequence, or always in one form.
enum class MlaForm { automatic, absorbed, expanded };

class Step {
 public:
  const Batch& batch;
  KvCache& cache;
  ThreadPool& pool;
  const Kernels& kernels;
  const RopeTables& ropes;
  WeightStore& weights;  // unpinned before every op
  Scratch& scratch;      // reset before every op
  QuantizedCache& quantized;
  MlaForm mla_form;
  int64_t counts[kDims];  // tokens, context, rows
  uint8_t* arenas[kDims];
  const int64_t* slots;           // [tokens] row of the cache pool each new token is written to
  const int32_t* recents;         // [sequences, table_width] the places of blocks' recent rows; null: none has any
  const int64_t* context_starts;  // [sequences + 1] first context row of each sequence
  uint32_t ids_buffer, positions_buffer;
  void* const* supplied;  // [program's outputs, then its inputs] where each lies

  int64_t n(Dim dim) const { return counts[static_cast<int>(dim)]; }
  int64_t n(const Buffer& buffer) const { return n(buffer.dim); }

  // Row of the cache pool where context row `row` of sequence s lies.
  int64_t slot(int64_t s, int64_t row) const {
    const int64_t size = cache.block_size();
    return batch.table(s)[row / size] * size + row % size;
  }

  // The blocks of an entry's rows of sequence s, or their places in its pool.
  const int32_t* table(size_t entry, int64_t s) const {
    return cache.is_recent(entry) ? recents + s * batch.table_width : batch.table(s);
  }
  // Row of an entry's pool where the entry's row `row` of sequence s lies: the row of a token, or of `ratio` tokens.
  int64_t entry_row(size_t entry, int64_t s, int64_t row) const {
    const int64_t size = cache.rows_of_block(entry);
    return table(entry, s)[row / size] * size + row % size;
  }

  // Weights with their bytes, which stay until the op ends: an op asks in run(), on the thread that calls it, and again
  // at its next run.
  Weight pin(const WeightRef& weight) {
    Weight pinned;
    weights.pin(&weight.id, 1, &pinned);
    return pinned;
  }
  // Several, in scratch: what is brought in from elsewhere comes together.
  const Weight* pin(const uint32_t* ids, int64_t n) {
    Weight* pinned = scratch.take<Weight>(n);
    weights.pin(ids, n, pinned);
    return pinned;
  }
  // Several groups of `each`, in scratch, that are used one group after another (Residency::pin_some).
  int64_t pin_some(const uint32_t* ids, int64_t each, int32_t* groups, int64_t n, Weight* out) {
    return weights.pin_some(ids, each, groups, n, out);
  }
  // A vector's numbers; null for a weight that the op has not got.
  const float* pin_vector(const WeightRef& weight) {
    return weight.id == WeightRef::kNone ? nullptr : reinterpret_cast<const float*>(pin(weight).data);
  }

  float* f32(const Buffer& buffer) const { return static_cast<float*>(address(buffer)); }
  int32_t* i32(const Buffer& buffer) const { return static_cast<int32_t*>(address(buffer)); }
  const int32_t* ints(const Buffer& buffer) const {
    if (buffer.id == ids_buffer) return batch.ids;
    if (buffer.id == positions_buffer) return batch.positions;
    return i32(buffer);
  }

 private:
  void* address(const Buffer& buffer) const {
    if (buffer.offset < 0) return supplied[buffer.supplied];
    return arenas[static_cast<int>(buffer.dim)] + buffer.offset * n(buffer.dim);
  }
};

// Calls function(row, worker) for rows [0, n), each touching about `cost` floats: in as many pieces as are worth it.
template <class Function>
void for_rows(const Step& step, int64_t n, int64_t cost, Function&& function) {
  constexpr int64_t kPieceCost = 8192;     // floats, about 2 us: less is not worth a thread
  constexpr int64_t kPiecesPerWorker = 8;  // enough to balance, few enough to stay in order
  const int64_t most = step.pool.size() * kPiecesPerWorker;
  const int64_t rows = std::max({int64_t{1}, kPieceCost / std::max<int64_t>(cost, 1), (n + most - 1) / most});
  step.pool.run((n + rows - 1) / rows, [&](int64_t piece, int worker) {
    const int64_t end = std::min(n, (piece + 1) * rows);
    for (int64_t row = piece * rows; row < end; ++row) function(row, worker);
  });
}

}  // namespace deepmnn
