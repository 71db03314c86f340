// Per-head norms, rotary embedding, cache and attention with grouped heads, in two stages: prepare every new token,
// then attend over the pages of the cache.
#include "ops/attend.h"
#include "ops/cache_rows.h"
#include "ops/ops.h"
#include "ops/rope.h"

namespace deepmnn {
namespace {

class GqaAttention : public GroupedQueryOp {
 public:
  explicit GqaAttention(const OpSpec& spec) {
    spec.require(spec.inputs() == 4 && spec.outputs() == 1 && (spec.weights() == 0 || spec.weights() == 2),
                 "its inputs, outputs and weights", "4 inputs, 1 output, 0 or 2 weights");
    read_grouped_query(spec, Dim::tokens);
    spec.require_graph_input(3, "positions");
    rope_ = Rope(spec, shape_.qk_dim);
    k_entry_ = spec.cache(0, k_.width);
    v_entry_ = spec.cache(1, v_.width);
    if (spec.weights() == 2) {
      q_norm_ = spec.vector(0, shape_.qk_dim);
      k_norm_ = spec.vector(1, shape_.qk_dim);
      eps_ = spec.float_attr("eps");
    }
  }

  void run(Step& step) override {
    const int64_t tokens = step.n(q_), group = heads_ / kv_heads_;
    float* q = step.scratch.take<float>(tokens * q_.width);  // [kv_heads, tokens, group, head_dim]
    const float *q_norm = step.pin_vector(q_norm_), *k_norm = step.pin_vector(k_norm_);
    const int64_t width = std::max(k_.width, v_.width);
    float* rows = step.scratch.take<float>(step.pool.size() * width);
    for_rows(step, tokens, 2 * (q_.width + k_.width), [&](int64_t token, int worker) {
      for (int64_t head = 0; head < heads_; ++head) {
        float* to = q + ((head / group * tokens + token) * group + head % group) * shape_.qk_dim;
        prepare(step, token, step.f32(q_) + token * q_.width + head * shape_.qk_dim, q_norm, to);
      }
      float* row = rows + worker * width;
      for (int64_t head = 0; head < kv_heads_; ++head) {
        const int64_t at = head * shape_.qk_dim;
        prepare(step, token, step.f32(k_) + token * k_.width + at, k_norm, row + at);
      }
      store_row(step, row, k_.width, k_entry_, step.slots[token]);
      std::copy_n(step.f32(v_) + token * v_.width, v_.width, row);
      rotate_heads(step, row, kv_heads_, shape_.v_dim);
      store_row(step, row, v_.width, v_entry_, step.slots[token]);
    });
    const int64_t sequences = step.batch.sequences;
    AttendJob* jobs = step.scratch.take<AttendJob>(sequences * kv_heads_);
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t head = 0; head < kv_heads_; ++head) jobs[s * kv_heads_ + head] = job(step, s, head, q);
    }
    attend(step, shape_, jobs, sequences * kv_heads_);
  }

 private:
  // One head of a query or key [head_dim], as it meets its like.
  void prepare(const Step& step, int64_t token, const float* x, const float* norm, float* y) const {
    if (norm) {
      step.kernels.rms_norm(x, norm, eps_, shape_.qk_dim, y);
    } else {
      std::copy_n(x, shape_.qk_dim, y);
    }
    rope_.rotate(step, token, y);
    rotate_heads(step, y, 1, shape_.qk_dim);
  }

  AttendJob job(const Step& step, int64_t s, int64_t kv_head, const float* q) const {
    const int64_t group = heads_ / kv_heads_, token = step.batch.sequence_starts[s];
    AttendJob job;
    job.keys.type = step.cache.type();
    job.keys.k = cache_rows(step, k_entry_, kv_head * shape_.qk_dim);
    job.keys.v = cache_rows(step, v_entry_, kv_head * shape_.v_dim);
    job.keys.table = step.batch.table(s);
    job.keys.block_size = step.cache.block_size();
    job.q = q + (kv_head * step.n(q_) + token) * group * shape_.qk_dim;
    job.q_stride = shape_.qk_dim;
    job.tokens = step.batch.tokens_of(s);
    job.per_token = group;
    job.history = step.batch.history(s);
    job.out = step.f32(y_) + token * y_.width + kv_head * group * shape_.v_dim;
    job.out_token_stride = y_.width;
    job.out_query_stride = shape_.v_dim;
    return job;
  }

  Rope rope_;
  size_t k_entry_, v_entry_;
  WeightRef q_norm_, k_norm_;  // none, or both
  float eps_ = 0.0f;
};

}  // namespace

OpPtr make_gqa_attention(const OpSpec& spec) { return std::make_unique<GqaAttention>(spec); }

}  // namespace deepmnn
