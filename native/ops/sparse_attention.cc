// Attention of each token over the rows that were chosen for it, on gathered rows.
#include "ops/attend.h"
#include "ops/ops.h"

namespace deepmnn {
namespace {

class SparseAttention : public GroupedQueryOp {
 public:
  explicit SparseAttention(const OpSpec& spec) {
    spec.require_counts(4, 1, 0);
    read_grouped_query(spec, Dim::context);
    rows_ = spec.int_input(3);
    spec.require(rows_.dim == Dim::tokens, "rows that do not count tokens", "[tokens, top_k]");
  }

  void run(Step& step) override {
    AttendJob* jobs = step.scratch.take<AttendJob>(kv_heads_);
    for (int64_t s = 0; s < step.batch.sequences; ++s) {
      for (int64_t token = step.batch.sequence_starts[s]; token < step.batch.sequence_starts[s + 1]; ++token) {
        const int64_t n = chosen(step, s, token);
        if (n == 0) {
          std::fill_n(step.f32(y_) + token * y_.width, y_.width, 0.0f);
          continue;
        }
        for (int64_t head = 0; head < kv_heads_; ++head) jobs[head] = job(step, s, token, head, n);
        const Scratch::Mark mark = step.scratch.mark();
        attend(step, shape_, jobs, kv_heads_);
        step.scratch.rewind(mark);
      }
    }
  }

 private:
  // How many rows a token has. A program may have them from anywhere: what is no row of the sequence ends them.
  int64_t chosen(const Step& step, int64_t s, int64_t token) const {
    const int32_t* rows = step.ints(rows_) + token * rows_.width;
    int64_t n = 0;
    while (n < rows_.width && rows[n] >= 0 && rows[n] < step.batch.context_lengths[s]) ++n;
    return n;
  }

  AttendJob job(const Step& step, int64_t s, int64_t token, int64_t kv_head, int64_t n) const {
    const int64_t row = step.context_starts[s], group = heads_ / kv_heads_;
    AttendJob job;
    job.keys.k = float_rows(step.f32(k_) + row * k_.width + kv_head * shape_.qk_dim, k_.width);
    job.keys.v = float_rows(step.f32(v_) + row * v_.width + kv_head * shape_.v_dim, v_.width);
    job.keys.table = step.ints(rows_) + token * rows_.width;
    job.q = step.f32(q_) + token * q_.width + kv_head * group * shape_.qk_dim;
    job.q_stride = shape_.qk_dim;
    job.tokens = 1;
    job.per_token = group;
    job.history = n - 1;
    job.out = step.f32(y_) + token * y_.width + kv_head * group * shape_.v_dim;
    job.out_token_stride = y_.width;
    job.out_query_stride = shape_.v_dim;
    return job;
  }

  Buffer rows_;
};

}  // namespace

OpPtr make_sparse_attention(const OpSpec& spec) { return std::make_unique<SparseAttention>(spec); }

}  // namespace deepmnn
