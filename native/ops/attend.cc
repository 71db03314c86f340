#include "ops/attend.h"

#include <cmath>
#include <limits>

namespace deepmnn {
namespace {

constexpr int64_t kAccFloats = 16384;  // of a query tile's running output: 64 KiB, half of L2's smallest sizes
constexpr int64_t kMaxTile = 64;
constexpr int64_t kMaxRun = 1024;    // keys given to the kernel at once
constexpr int64_t kSplitKeys = 512;  // keys of one split
constexpr int64_t kSplitTokens = 4;  // sequences with at most this many new tokens split their keys

// A query tile against one split of its keys. The cut depends on the job alone, never on the batch or the threads, so
// that a sequence's numbers do not either.
struct Item {
  int64_t job;
  int64_t first, last;  // queries
  int64_t key_begin, key_end;
  int64_t partial;  // index of its partial result, -1: the only split
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t visible(const AttendJob& job, int64_t query) { return job.history + query / job.per_token + 1; }

int64_t tile_queries(const AttendShape& shape) {
  return std::min(kMaxTile, std::max<int64_t>(8, kAccFloats / shape.v_dim));
}

struct Split {
  int64_t tiles, splits, keys;
};

Split split_of(const AttendJob& job, int64_t tile) {
  const int64_t keys = job.history + job.tokens;
  const bool wanted = job.tokens <= kSplitTokens && keys > kSplitKeys;
  return {ceil_div(job.tokens * job.per_token, tile), wanted ? ceil_div(keys, kSplitKeys) : 1, keys};
}

// Items of one job in the order (split, tile): tiles that read the same keys follow one another.
int64_t list_items(const AttendJob& job, int64_t index, int64_t tile, int64_t& partials, Item* items) {
  const Split split = split_of(job, tile);
  const int64_t queries = job.tokens * job.per_token;
  for (int64_t s = 0; s < split.splits; ++s) {
    for (int64_t t = 0; t < split.tiles; ++t) {
      const int64_t last = std::min(queries, (t + 1) * tile);
      const int64_t end = std::min(visible(job, last - 1), split.splits > 1 ? (s + 1) * kSplitKeys : split.keys);
      *items++ = {index, t * tile, last, s * kSplitKeys, end, split.splits > 1 ? partials++ : -1};
    }
  }
  return split.splits * split.tiles;
}

// The rows from `key` on that go to the kernel together. Never more than one block, even where the next one happens to
// follow it in memory: which blocks a sequence was given must not show in its numbers.
int64_t run_length(const KeyRows& keys, int64_t key, int64_t end) {
  const int64_t most = std::min(end - key, kMaxRun);
  return keys.table ? std::min(most, keys.block_size - key % keys.block_size) : most;
}

struct Workspace {
  float* acc;       // [tile, v_dim]
  float* max_sum;   // [tile, 2]
  int32_t* limits;  // [tile]
};

// Leaves the item's unnormalised output and its maxima and sums in the workspace.
void run_item(const Step& step, const AttendShape& shape, const AttendJob& job, const Item& item,
              const Workspace& work) {
  const KeyRows& keys = job.keys;
  const int64_t queries = item.last - item.first;
  const int64_t nbytes = keys.bf16 ? 2 : 4;
  for (int64_t i = 0; i < queries; ++i) {
    work.max_sum[2 * i] = -std::numeric_limits<float>::infinity();
    work.max_sum[2 * i + 1] = 0.0f;
  }
  Kernels::AttentionTask task;
  task.q = job.q + item.first * job.q_stride;
  task.q_stride = job.q_stride;
  task.n_queries = queries;
  task.qk_dim = shape.qk_dim;
  task.v_dim = shape.v_dim;
  task.scale = shape.scale;
  task.k_stride = keys.k_stride;
  task.v_stride = keys.v_stride;
  task.bf16 = keys.bf16;
  task.limits = work.limits;
  task.acc = work.acc;
  task.max_sum = work.max_sum;
  for (int64_t key = item.key_begin; key < item.key_end; key += task.n_keys) {
    const int64_t row = keys.table ? keys.table[key / keys.block_size] * keys.block_size + key % keys.block_size : key;
    task.n_keys = run_length(keys, key, item.key_end);
    task.k = keys.k + row * keys.k_stride * nbytes;
    task.v = keys.v + row * keys.v_stride * nbytes;
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t limit = visible(job, item.first + i) - key;
      work.limits[i] = static_cast<int32_t>(std::clamp<int64_t>(limit, 0, task.n_keys));
    }
    step.kernels.attention(task);
  }
}

float* output(const AttendJob& job, int64_t query) {
  return job.out + query / job.per_token * job.out_token_stride + query % job.per_token * job.out_query_stride;
}

void normalise(const Step& step, const AttendShape& shape, const AttendJob& job, const Item& item,
               const Workspace& work) {
  for (int64_t query = item.first; query < item.last; ++query) {
    const int64_t i = query - item.first;
    step.kernels.scale(work.acc + i * shape.v_dim, 1.0f / work.max_sum[2 * i + 1], shape.v_dim, output(job, query));
  }
}

// One query's splits, put together: sum of e^(m - M) acc over sum of e^(m - M) s (arXiv:2205.14135).
void merge(const Step& step, const AttendShape& shape, const AttendJob& job, const Split& split, int64_t tile,
           const Workspace& partials, int64_t query) {
  const auto at = [&](int64_t s) { return (s * split.tiles + query / tile) * tile + query % tile; };
  float most = -std::numeric_limits<float>::infinity();
  for (int64_t s = 0; s < split.splits; ++s) most = std::max(most, partials.max_sum[2 * at(s)]);
  float* out = output(job, query);
  std::fill_n(out, shape.v_dim, 0.0f);
  float sum = 0.0f;
  for (int64_t s = 0; s < split.splits; ++s) {
    const float part = partials.max_sum[2 * at(s) + 1];
    if (part == 0.0f) continue;  // a split of later keys only
    const float weight = std::exp(partials.max_sum[2 * at(s)] - most);
    step.kernels.axpy(weight, partials.acc + at(s) * shape.v_dim, shape.v_dim, out);
    sum += weight * part;
  }
  step.kernels.scale(out, 1.0f / sum, shape.v_dim, out);
}

Workspace take_workspace(Step& step, const AttendShape& shape, int64_t tile, int64_t count) {
  return {step.scratch.take<float>(count * tile * shape.v_dim), step.scratch.take<float>(count * tile * 2),
          step.scratch.take<int32_t>(count * tile)};
}

Workspace part(const Workspace& work, const AttendShape& shape, int64_t tile, int64_t index) {
  return {work.acc + index * tile * shape.v_dim, work.max_sum + index * tile * 2, work.limits + index * tile};
}

}  // namespace

void attend(Step& step, const AttendShape& shape, const AttendJob* jobs, int64_t count) {
  const int64_t tile = tile_queries(shape);
  int64_t items = 0, partials = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Split split = split_of(jobs[i], tile);
    items += split.tiles * split.splits;
  }
  Item* list = step.scratch.take<Item>(items);
  int64_t* first_partial = step.scratch.take<int64_t>(count);
  int64_t filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    first_partial[i] = partials;
    filled += list_items(jobs[i], i, tile, partials, list + filled);
  }
  const Workspace own = take_workspace(step, shape, tile, step.pool.size());
  const Workspace shared = take_workspace(step, shape, tile, partials);
  step.pool.run(items, [&](int64_t chunk, int worker) {
    const Item& item = list[chunk];
    const bool only = item.partial < 0;
    const Workspace work = only ? part(own, shape, tile, worker) : part(shared, shape, tile, item.partial);
    run_item(step, shape, jobs[item.job], item, work);
    if (only) normalise(step, shape, jobs[item.job], item, work);
  });
  if (partials == 0) return;
  step.pool.run(count, [&](int64_t index, int) {
    const AttendJob& job = jobs[index];
    const Split split = split_of(job, tile);
    if (split.splits == 1) return;
    const Workspace mine = part(shared, shape, tile, first_partial[index]);
    for (int64_t query = 0; query < job.tokens * job.per_token; ++query) {
      merge(step, shape, job, split, tile, mine, query);
    }
  });
}

void GroupedQueryOp::read_grouped_query(const OpSpec& spec, Dim keys) {
  heads_ = spec.int_attr("heads", 1, kMaxExtentAttr);
  kv_heads_ = spec.int_attr("kv_heads", 1, heads_);
  spec.require(heads_ % kv_heads_ == 0, std::to_string(heads_) + " heads", "a multiple of kv_heads");
  shape_.qk_dim = spec.int_attr("head_dim", 1, kMaxExtentAttr);
  shape_.v_dim = spec.int_attr("v_head_dim", 1, kMaxExtentAttr);
  shape_.scale = spec.float_attr("scale");
  q_ = spec.input(0, Dim::tokens, heads_ * shape_.qk_dim);
  k_ = spec.input(1, keys, kv_heads_ * shape_.qk_dim);
  v_ = spec.input(2, keys, kv_heads_ * shape_.v_dim);
  y_ = spec.output(0, Dim::tokens, heads_ * shape_.v_dim);
}

}  // namespace deepmnn
