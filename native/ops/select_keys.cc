#include "ops/select_keys.h"

#include <cstring>

#include "ops/ops.h"

namespace deepmnn {
namespace {

constexpr int64_t kScoreFloats = 4 << 20;   // scores at once: 16 MiB, or one token's
constexpr int64_t kKeysAtOnce = 256;        // a piece of work, for all tokens that are scored together
constexpr int64_t kQueryFloats = 32 << 10;  // scored against a piece before the next ones: 128 KiB of L2
constexpr int64_t kBuckets = 1 << 11;

// Floats in an order of unsigned integers, what is no number before all others.
uint32_t ordered(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return 0;
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The k-th largest of n scores, ordered, and how many that are equal to it belong to the k.
struct Threshold {
  uint32_t value;
  int64_t equal;
};

// Digit by digit from the top: of 11, 11 and 10 bits.
Threshold find_threshold(const float* scores, int64_t n, int64_t k, int32_t* buckets) {
  static constexpr int kShifts[] = {21, 10, 0}, kWidths[] = {11, 11, 10};
  uint32_t prefix = 0, mask = 0;
  for (int digit = 0; digit < 3; ++digit) {
    const int shift = kShifts[digit];
    const uint32_t low = (1u << kWidths[digit]) - 1;
    std::fill_n(buckets, kBuckets, 0);
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t value = ordered(scores[i]);
      if ((value & mask) == prefix) ++buckets[value >> shift & low];
    }
    uint32_t bucket = low;
    while (buckets[bucket] < k) k -= buckets[bucket--];
    prefix |= bucket << shift;
    mask |= low << shift;
  }
  return {prefix, k};
}

// The rows of the k largest of n scores, n > k; of equal ones the lower row's.
void best_rows(const float* scores, int64_t n, const IndexShape& shape, int32_t* buckets, int32_t* rows) {
  Threshold threshold = find_threshold(scores, n, shape.top_k, buckets);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t value = ordered(scores[i]);
    if (value < threshold.value) continue;
    if (value == threshold.value && threshold.equal-- <= 0) continue;
    *rows++ = static_cast<int32_t>(i * shape.ratio + shape.ratio - 1);
  }
}

void all_rows(int64_t n, const IndexShape& shape, int32_t* rows) {
  for (int64_t i = 0; i < n; ++i) rows[i] = static_cast<int32_t>(i * shape.ratio + shape.ratio - 1);
  std::fill(rows + n, rows + shape.top_k, -1);
}

int64_t groups_of(int64_t dim) { return (dim + kCacheGroup - 1) / kCacheGroup; }

// The queries of n tokens as an int8 cache's keys are multiplied.
void quantize_queries(Step& step, const IndexShape& shape, const float* q, int64_t n, Kernels::IndexTask& task) {
  const int64_t groups = groups_of(shape.dim), width = groups * kCacheGroup, heads = n * shape.heads;
  int8_t* codes = step.scratch.take<int8_t>(heads * width);
  float* scales = step.scratch.take<float>(heads * groups);
  int32_t* sums = step.scratch.take<int32_t>(heads * groups);
  for_rows(step, heads, 2 * shape.dim, [&](int64_t i, int) {
    int8_t* to = codes + i * width;
    std::fill(to + shape.dim, to + width, int8_t{0});
    step.kernels.quantize_cache(q + i * shape.dim, shape.dim, to, scales + i * groups);
    for (int64_t g = 0; g < groups; ++g) {
      int32_t sum = 0;
      for (int64_t d = 0; d < kCacheGroup; ++d) sum += to[g * kCacheGroup + d];
      sums[i * groups + g] = sum;
    }
  });
  task.codes = codes;
  task.scales = scales;
  task.sums = sums;
}

// Tokens [first, first + n) of a task.
Kernels::IndexTask tokens_of(Kernels::IndexTask task, int64_t first, int64_t n) {
  const int64_t heads = first * task.heads, groups = groups_of(task.dim);
  task.tokens = n;
  task.q += heads * task.dim;
  task.weights += heads;
  task.limits += first;
  task.out += first * task.out_stride;
  if (task.type == CacheType::int8) {
    task.codes += heads * groups * kCacheGroup;
    task.scales += heads * groups;
    task.sums += heads * groups;
  }
  return task;
}

// Tokens [first, first + n), of which each sees more keys than it chooses.
void select_some(Step& step, const IndexShape& shape, const IndexJob& job, int64_t first, int64_t n) {
  Kernels::IndexTask task{};
  task.q = job.q + first * shape.heads * shape.dim;
  task.tokens = n;
  task.heads = shape.heads;
  task.dim = shape.dim;
  task.type = job.type;
  task.k = job.k;
  task.table = job.table;
  task.block_size = job.block_size;
  task.ratio = shape.whole_rows ? 1 : shape.ratio;
  if (job.type == CacheType::int8) quantize_queries(step, shape, task.q, n, task);
  float* weights = step.scratch.take<float>(n * shape.heads);
  step.kernels.scale(job.weights + first * shape.heads, shape.scale, n * shape.heads, weights);
  int32_t* limits = step.scratch.take<int32_t>(n);
  for (int64_t i = 0; i < n; ++i) limits[i] = static_cast<int32_t>(shape.keys(job.history + first + i + 1));
  const int64_t keys = limits[n - 1], work = index_work(shape.dim);
  task.weights = weights;
  task.limits = limits;
  task.out_stride = (keys + 15) / 16 * 16;
  const int64_t together = std::max<int64_t>(kQueryFloats / (shape.heads * shape.dim), 1);
  float* scores = step.scratch.take<float>(n * task.out_stride);
  float* rooms = step.scratch.take<float>(step.pool.size() * work);
  step.pool.run((keys + kKeysAtOnce - 1) / kKeysAtOnce, [&](int64_t piece, int worker) {
    Kernels::IndexTask part = task;
    part.first_key = piece * kKeysAtOnce;
    part.n_keys = std::min(kKeysAtOnce, keys - part.first_key);
    part.out = scores + part.first_key;
    part.work = rooms + worker * work;
    for (int64_t i = 0; i < n; i += together) step.kernels.index_scores(tokens_of(part, i, std::min(together, n - i)));
  });
  int32_t* buckets = step.scratch.take<int32_t>(step.pool.size() * kBuckets);
  step.pool.run(n, [&](int64_t i, int worker) {
    best_rows(scores + i * task.out_stride, limits[i], shape, buckets + worker * kBuckets,
              job.rows + (first + i) * shape.top_k);
  });
}

class SelectKeys : public Op {
 public:
  explicit SelectKeys(const OpSpec& spec) {
    spec.require_counts(3, 1, 0);
    shape_.heads = spec.int_attr("heads", 1, kMaxExtentAttr);
    shape_.dim = spec.int_attr("head_dim", 1, kMaxExtentAttr);
    shape_.top_k = spec.int_attr("top_k", 1, kMaxExtentAttr);
    shape_.ratio = spec.int_attr("ratio", 1, kMaxExtentAttr);
    shape_.scale = spec.float_attr("scale");
    q_ = spec.input(0, Dim::tokens, shape_.heads * shape_.dim);
    weights_ = spec.input(1, Dim::tokens, shape_.heads);
    k_ = spec.input(2, Dim::context, shape_.dim);
    rows_ = spec.int_output(0, Dim::tokens, shape_.top_k);
  }

  void run(Step& step) override {
    for (int64_t s = 0; s < step.batch.sequences; ++s) {
      const int64_t token = step.batch.sequence_starts[s];
      IndexJob job;
      job.k = float_rows(step.f32(k_) + step.context_starts[s] * k_.width, k_.width);
      job.q = step.f32(q_) + token * q_.width;
      job.weights = step.f32(weights_) + token * weights_.width;
      job.tokens = step.batch.tokens_of(s);
      job.history = step.batch.history(s);
      job.rows = step.i32(rows_) + token * shape_.top_k;
      select_keys(step, shape_, job);
    }
  }

 private:
  IndexShape shape_;
  Buffer q_, weights_, k_, rows_;
};

}  // namespace

void select_keys(Step& step, const IndexShape& shape, const IndexJob& job) {
  // Later tokens see more: those that see no more keys than they choose come first.
  const auto seen = [&](int64_t token) { return shape.keys(job.history + token + 1); };
  int64_t first = 0;
  while (first < job.tokens && seen(first) <= shape.top_k) ++first;
  for_rows(step, first, shape.top_k, [&](int64_t i, int) { all_rows(seen(i), shape, job.rows + i * shape.top_k); });
  while (first < job.tokens) {
    const int64_t fit = std::max<int64_t>(kScoreFloats / (seen(job.tokens - 1) + 15), 1);
    const int64_t n = std::min(fit, job.tokens - first);
    const Scratch::Mark mark = step.scratch.mark();
    select_some(step, shape, job, first, n);
    step.scratch.rewind(mark);
    first += n;
  }
}

OpPtr make_select_keys(const OpSpec& spec) { return std::make_unique<SelectKeys>(spec); }

}  // namespace deepmnn
