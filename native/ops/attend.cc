#include "ops/attend.h"

#include <cmath>
#include <limits>

namespace deepmnn {
namespace {

constexpr int64_t kTileFloats = 48 << 10;  // of a query tile, its weights and its output: 192 KiB of L2
constexpr int64_t kMinTile = 32, kMaxTile = 128;
constexpr int64_t kFewQueries = 10;      // up to here rows of floats are faster than one vector of queries
constexpr int64_t kSplitWork = 1 << 19;  // multiply-accumulates worth an item
constexpr int64_t kSplitKeys = 64;       // a split is a multiple of these
constexpr int64_t kFewSplits = 16;       // enough for short keys
constexpr int64_t kLongSplit = 256;      // from here on what a split costs does not matter
constexpr int64_t kMaxSplits = 32;
constexpr int64_t kPartialsNbytes = 16 << 20;  // of partial results at once; one job may have more

// A query tile against one split of its keys. The cut depends on the job alone, never on the batch or the threads, so
// that a sequence's numbers do not either.
struct Item {
  int64_t job;
  int64_t first, last;  // queries
  int64_t key_begin, key_end;
  int64_t keys_ahead;  // keys after them of the next item
  int64_t partial;     // index of its partial result, -1: the only split
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t visible(const AttendJob& job, int64_t query) { return job.history + query / job.per_token + 1; }

int64_t tile_queries(const AttendShape& shape) {
  const int64_t fit = kTileFloats / (shape.qk_dim + shape.v_dim + kSplitKeys);
  return std::clamp(fit / 32 * 32, kMinTile, kMaxTile);
}

// Splits of one job's keys: of `keys` each (the last one may have fewer).
struct Split {
  int64_t tiles, splits, keys;
};

Split split_of(const AttendShape& shape, const AttendJob& job, int64_t tile) {
  const int64_t keys = job.history + job.tokens, queries = job.tokens * job.per_token;
  const int64_t tiles = ceil_div(queries, tile);
  if (job.tokens > kSplitTokens || job.whole) return {tiles, 1, keys};
  const int64_t worth = ceil_div(kSplitWork, queries * (shape.qk_dim + shape.v_dim));
  const int64_t even = std::min(ceil_div(keys, kFewSplits), std::max(kLongSplit, ceil_div(keys, kMaxSplits)));
  const int64_t each = ceil_div(std::max(worth, even), kSplitKeys) * kSplitKeys;
  return {tiles, ceil_div(keys, each), std::min(each, keys)};
}

// Items of one job in the order (split, tile): tiles that read the same keys follow one another.
int64_t list_items(const AttendJob& job, const Split& split, int64_t index, int64_t tile, int64_t& partials,
                   Item* items) {
  const int64_t queries = job.tokens * job.per_token, keys = job.history + job.tokens;
  for (int64_t s = 0; s < split.splits; ++s) {
    for (int64_t t = 0; t < split.tiles; ++t) {
      const int64_t last = std::min(queries, (t + 1) * tile), begin = s * split.keys;
      // The last split may hold nothing that an earlier token sees.
      const int64_t end = std::max(begin, std::min(visible(job, last - 1), begin + split.keys));
      const int64_t ahead = t + 1 < split.tiles ? 0 : std::min(split.keys, keys - end);
      *items++ = {index, t * tile, last, begin, end, ahead, split.splits > 1 ? partials++ : -1};
    }
  }
  return split.splits * split.tiles;
}

struct Workspace {
  float* acc;       // [tile, v_dim]
  float* max_sum;   // [tile, 2]
  int32_t* limits;  // [tile]
};

// Leaves the item's unnormalised output and its maxima and sums in the workspace. strips: room for the kernel.
void run_item(const Step& step, const AttendShape& shape, const AttendJob& job, const Item& item, const Workspace& work,
              float* strips) {
  const KeyRows& keys = job.keys;
  Kernels::AttentionTask task;
  task.q = job.q + item.first * job.q_stride;
  task.q_stride = job.q_stride;
  task.n_queries = item.last - item.first;
  task.qk_dim = shape.qk_dim;
  task.v_dim = shape.v_dim;
  task.scale = shape.scale;
  task.form = job.tokens * job.per_token <= kFewQueries ? AttentionForm::rows : AttentionForm::strips;
  task.mask = nullptr;
  if (job.mask) {  // tiles begin at whole vectors of queries
    task.form = AttentionForm::strips;
    task.mask_stride = job.history + job.tokens;
    task.mask = job.mask + item.first / 16 * task.mask_stride + item.key_begin;
  }
  task.type = keys.type;
  task.k = keys.k;
  task.v = keys.v;
  task.values_in_keys = keys.k.data == keys.v.data && keys.k.column == keys.v.column && shape.v_dim <= shape.qk_dim;
  task.table = keys.table;
  task.block_size = keys.block_size;
  task.first_key = item.key_begin;
  task.n_keys = item.key_end - item.key_begin;
  task.keys_ahead = item.keys_ahead;
  task.limits = work.limits;
  task.acc = work.acc;
  task.max_sum = work.max_sum;
  task.work = strips;
  for (int64_t i = 0; i < task.n_queries; ++i) {
    const int64_t limit = visible(job, item.first + i) - item.key_begin;
    work.limits[i] = static_cast<int32_t>(std::clamp<int64_t>(limit, 0, task.n_keys));
    work.max_sum[2 * i] = -std::numeric_limits<float>::infinity();
    work.max_sum[2 * i + 1] = 0.0f;
  }
  step.kernels.attention(task);
}

float* output(const AttendJob& job, int64_t query) {
  return job.out + query / job.per_token * job.out_token_stride + query % job.per_token * job.out_query_stride;
}

// A query's output from its sums: values of int8 rows are rotated, and so are weighted sums of them.
void finish(const Step& step, const AttendShape& shape, const AttendJob& job, int64_t query, const float* acc,
            float most, float sum) {
  float* out = output(job, query);
  if (job.sinks) sum += std::exp(job.sinks[query % job.per_token] - most);
  step.kernels.scale(acc, 1.0f / sum, shape.v_dim, out);
  if (job.keys.type == CacheType::int8) step.kernels.unrotate_heads(out, 1, shape.v_dim);
}

void normalise(const Step& step, const AttendShape& shape, const AttendJob& job, const Item& item,
               const Workspace& work) {
  for (int64_t query = item.first; query < item.last; ++query) {
    const int64_t i = query - item.first;
    finish(step, shape, job, query, work.acc + i * shape.v_dim, work.max_sum[2 * i], work.max_sum[2 * i + 1]);
  }
}

// What the splits of all jobs left behind.
struct Partials {
  const Split* splits;   // [jobs]
  const int64_t* first;  // [jobs]: index of the job's first partial result
  Workspace work;        // [partials]
  int64_t tile;
};

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
  finish(step, shape, job, query, out, most, sum);
}

Workspace take_workspace(Step& step, const AttendShape& shape, int64_t tile, int64_t count) {
  return {step.scratch.take<float>(count * tile * shape.v_dim), step.scratch.take<float>(count * tile * 2),
          step.scratch.take<int32_t>(count * tile)};
}

Workspace part(const Workspace& work, const AttendShape& shape, int64_t tile, int64_t index) {
  return {work.acc + index * tile * shape.v_dim, work.max_sum + index * tile * 2, work.limits + index * tile};
}

void merge_jobs(Step& step, const AttendShape& shape, const AttendJob* jobs, int64_t count, const Partials& partials) {
  struct Merge {
    int64_t job, query;
  };
  int64_t queries = 0;
  for (int64_t i = 0; i < count; ++i) queries += partials.splits[i].splits > 1 ? jobs[i].tokens * jobs[i].per_token : 0;
  Merge* list = step.scratch.take<Merge>(queries);
  int64_t filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (partials.splits[i].splits == 1) continue;
    for (int64_t query = 0; query < jobs[i].tokens * jobs[i].per_token; ++query) list[filled++] = {i, query};
  }
  for_rows(step, queries, 8 * shape.v_dim, [&](int64_t row, int) {
    const auto [job, query] = list[row];
    merge(step, shape, jobs[job], partials.splits[job], partials.tile,
          part(partials.work, shape, partials.tile, partials.first[job]), query);
  });
}

}  // namespace

AttendRoom take_attend_room(Step& step, const AttendShape& shape) {
  const int64_t tile = tile_queries(shape), workers = step.pool.size();
  const Workspace own = take_workspace(step, shape, tile, workers);
  return {own.acc, own.max_sum, own.limits,
          step.scratch.take<float>(attention_work(tile, shape.qk_dim, shape.v_dim) * workers)};
}

namespace {

// How many of the jobs, one at least, run together: sequences that share a long prefix have more partial results than
// the cache has rows.
int64_t jobs_at_once(const AttendShape& shape, const AttendJob* jobs, int64_t count, int64_t tile) {
  const int64_t most = kPartialsNbytes / (tile * ((shape.v_dim + 2) * 4 + 4));
  int64_t partials = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Split split = split_of(shape, jobs[i], tile);
    if (split.splits > 1) partials += split.tiles * split.splits;
    if (partials > most && i > 0) return i;
  }
  return count;
}

void attend_some(Step& step, const AttendShape& shape, const AttendRoom& room, const AttendJob* jobs, int64_t count,
                 int64_t tile) {
  int64_t items = 0, partials = 0;
  Split* splits = step.scratch.take<Split>(count);
  for (int64_t i = 0; i < count; ++i) {
    splits[i] = split_of(shape, jobs[i], tile);
    items += splits[i].tiles * splits[i].splits;
  }
  Item* list = step.scratch.take<Item>(items);
  int64_t* first_partial = step.scratch.take<int64_t>(count);
  int64_t filled = 0;
  for (int64_t i = 0; i < count; ++i) {
    first_partial[i] = partials;
    filled += list_items(jobs[i], splits[i], i, tile, partials, list + filled);
  }
  const Workspace own{room.acc, room.max_sum, room.limits};
  const Workspace shared = take_workspace(step, shape, tile, partials);
  const int64_t strip_floats = attention_work(tile, shape.qk_dim, shape.v_dim);
  step.pool.run(items, [&](int64_t piece, int worker) {
    const Item& item = list[piece];
    const bool only = item.partial < 0;
    const Workspace work = only ? part(own, shape, tile, worker) : part(shared, shape, tile, item.partial);
    run_item(step, shape, jobs[item.job], item, work, room.strips + worker * strip_floats);
    if (only) normalise(step, shape, jobs[item.job], item, work);
  });
  if (partials) merge_jobs(step, shape, jobs, count, {splits, first_partial, shared, tile});
}

// Few new tokens of a sequence become jobs of one token each: a step that runs guesses gives the numbers of steps
// without them, to the bit.
const AttendJob* one_by_one(Step& step, const AttendJob* jobs, int64_t& count) {
  const auto few = [](const AttendJob& job) { return job.tokens <= kAloneTokens && !job.mask; };
  int64_t made = 0;
  for (int64_t i = 0; i < count; ++i) made += few(jobs[i]) ? jobs[i].tokens : 1;
  if (made == count) return jobs;
  AttendJob* list = step.scratch.take<AttendJob>(made);
  AttendJob* next = list;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t token = 0; token < (few(jobs[i]) ? jobs[i].tokens : 1); ++token) {
      *next = jobs[i];
      if (few(jobs[i])) next->tokens = 1;
      next->history += token;
      next->q += token * next->per_token * next->q_stride;
      next->out += token * next->out_token_stride;
      ++next;
    }
  }
  count = made;
  return list;
}

}  // namespace

void attend(Step& step, const AttendShape& shape, const AttendRoom& room, const AttendJob* jobs, int64_t count) {
  const int64_t tile = tile_queries(shape);
  const Scratch::Mark begin = step.scratch.mark();
  jobs = one_by_one(step, jobs, count);
  while (count > 0) {
    const int64_t some = jobs_at_once(shape, jobs, count, tile);
    const Scratch::Mark mark = step.scratch.mark();
    attend_some(step, shape, room, jobs, some, tile);
    step.scratch.rewind(mark);
    jobs += some;
    count -= some;
  }
  step.scratch.rewind(begin);
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
