// The plain attention chain: cache gathers every row the sequences see, attention works on those rows.
#include "ops/attend.h"
#include "ops/cache_rows.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

class CacheOp : public Op {
 public:
  explicit CacheOp(const OpSpec& spec) {
    spec.require_counts(1, 1, 0);
    x_ = spec.input(0);
    spec.require(x_.dim == Dim::tokens, "an input that does not count tokens", "[tokens, width]");
    y_ = spec.output(0, Dim::context, x_.width);
    entry_ = spec.cache(0, x_.width);
  }

  void run(Step& step) override {
    const float* x = step.f32(x_);
    const int64_t width = x_.width;
    float* rows = step.scratch.take<float>(step.pool.size() * width);
    for_rows(step, step.n(x_), width, [&](int64_t token, int worker) {
      float* row = rows + worker * width;
      std::copy_n(x + token * width, width, row);
      rotate_heads(step, row, 1, width);
      store_row(step, row, width, entry_, step.slots[token]);
    });
    for (int64_t s = 0; s < step.batch.sequences; ++s) {
      float* y = step.f32(y_) + step.context_starts[s] * width;
      for_rows(step, step.batch.context_lengths[s], width, [&](int64_t row, int) {
        load_row(step, entry_, step.slot(s, row), width, y + row * width);
        unrotate_heads(step, y + row * width, 1, width);
      });
    }
  }

 private:
  Buffer x_, y_;
  size_t entry_;
};

class Attention : public GroupedQueryOp {
 public:
  explicit Attention(const OpSpec& spec) {
    spec.require_counts(3, 1, 0);
    read_grouped_query(spec, Dim::context);
  }

  void run(Step& step) override {
    const int64_t sequences = step.batch.sequences;
    AttendJob* jobs = step.scratch.take<AttendJob>(sequences * heads_);
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t head = 0; head < heads_; ++head) jobs[s * heads_ + head] = job(step, s, head);
    }
    attend(step, shape_, jobs, sequences * heads_);
  }

 private:
  AttendJob job(const Step& step, int64_t s, int64_t head) const {
    const int64_t kv_head = head / (heads_ / kv_heads_);
    const int64_t row = step.context_starts[s], token = step.batch.sequence_starts[s];
    AttendJob job;
    job.keys.k = float_rows(step.f32(k_) + row * k_.width + kv_head * shape_.qk_dim, k_.width);
    job.keys.v = float_rows(step.f32(v_) + row * v_.width + kv_head * shape_.v_dim, v_.width);
    job.q = step.f32(q_) + token * q_.width + head * shape_.qk_dim;
    job.q_stride = q_.width;
    job.tokens = step.batch.tokens_of(s);
    job.history = step.batch.history(s);
    job.out = step.f32(y_) + token * y_.width + head * shape_.v_dim;
    job.out_token_stride = y_.width;
    return job;
  }
};

}  // namespace

OpPtr make_cache(const OpSpec& spec) { return std::make_unique<CacheOp>(spec); }
OpPtr make_attention(const OpSpec& spec) { return std::make_unique<Attention>(spec); }

}  // namespace deepmnn
