// Latent attention to the rows that an indexer chooses, once a sequence is longer than what it chooses.
#include "ops/mla.h"
#include "ops/ops.h"
#include "ops/select_keys.h"
#include "runtime/fail.h"

namespace deepmnn {
namespace {

class SparseMlaAttention : public LatentOp {
 public:
  explicit SparseMlaAttention(const OpSpec& spec) {
    spec.require_counts(6, 1, 5);
    read_latent(spec);
    index_.heads = spec.int_attr("index_n_heads", 1, kMaxExtentAttr);
    index_.dim = spec.int_attr("index_head_dim", mla_.rope_dim, kMaxExtentAttr);
    index_.top_k = spec.int_attr("index_topk", 1, kMaxExtentAttr);
    index_.scale = spec.float_attr("index_scale");
    eps_ = spec.float_attr("index_eps");
    rope_ = Rope(spec, mla_.rope_dim, "index_interleaved");
    q_ = spec.input(3, Dim::tokens, index_.heads * index_.dim);
    k_ = spec.input(4, Dim::tokens, index_.dim);
    weights_ = spec.input(5, Dim::tokens, index_.heads);
    norm_ = spec.vector(3, index_.dim);
    bias_ = spec.vector(4, index_.dim);
    entry_ = spec.cache(1, index_.dim);
  }

  void run(Step& step) override {
    write_latents(step);
    write_keys(step);
    const int64_t sequences = step.batch.sequences;
    int64_t *all = step.scratch.take<int64_t>(sequences), *some = step.scratch.take<int64_t>(sequences);
    int64_t n_all = 0, n_some = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      if (step.batch.context_lengths[s] <= index_.top_k) {
        all[n_all++] = s;
      } else {
        some[n_some++] = s;
      }
    }
    if (n_all) attend_all(step, all, n_all);
    if (n_some) attend_some(step, some, n_some);
  }

 private:
  void write_keys(Step& step) const {
    const float *x = step.f32(k_), *norm = step.pin_vector(norm_), *bias = step.pin_vector(bias_);
    float* rows = step.scratch.take<float>(step.pool.size() * index_.dim);
    for_rows(step, step.n(k_), 3 * index_.dim, [&](int64_t token, int worker) {
      float* row = rows + worker * index_.dim;
      step.kernels.layer_norm(x + token * index_.dim, norm, bias, eps_, index_.dim, row);
      rope_.rotate(step, token, row);
      rotate_heads(step, row, 1, index_.dim);
      store_row(step, row, index_.dim, entry_, step.slots[token]);
    });
  }

  // Sequences of one form after those of the other, each with the rows that its tokens choose.
  void attend_some(Step& step, int64_t* sequences, int64_t count) const {
    if (step.cache.blocks() > INT32_MAX / step.cache.block_size()) {
      fail_request("a KV cache of more than 2^31 rows", "fewer blocks: this model chooses rows by number");
    }
    const auto expanded = [&](int64_t s) { return wants_expanded(step, s, index_.top_k); };
    int64_t* const middle = std::stable_partition(sequences, sequences + count, expanded);
    const Scratch::Mark mark = step.scratch.mark();
    if (const int64_t n = middle - sequences) run_expanded(step, mla_, sequences, n, choose(step, sequences, n));
    step.scratch.rewind(mark);
    const int64_t n = sequences + count - middle;
    if (n) run_absorbed(step, mla_, middle, n, choose(step, middle, n));
  }

  ChosenRows choose(Step& step, const int64_t* sequences, int64_t count) const {
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; ++i) tokens += step.batch.tokens_of(sequences[i]);
    const ChosenRows chosen{step.scratch.take<int32_t>(tokens * index_.top_k), index_.top_k};
    const Scratch::Mark mark = step.scratch.mark();
    float* q = step.scratch.take<float>(tokens * q_.width);
    int64_t first = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = step.batch.sequence_starts[sequences[i]];
      IndexJob job;
      job.type = step.cache.type();
      job.k = cache_rows(step, entry_, 0);
      job.table = step.batch.table(sequences[i]);
      job.block_size = step.cache.block_size();
      job.tokens = step.batch.tokens_of(sequences[i]);
      job.history = step.batch.history(sequences[i]);
      job.q = q + first * q_.width;
      job.weights = step.f32(weights_) + token * weights_.width;
      job.rows = chosen.rows + first * chosen.top_k;
      rotate_queries(step, token, job.tokens, q + first * q_.width);
      select_keys(step, index_, job);
      first += job.tokens;
    }
    step.scratch.rewind(mark);
    return chosen;
  }

  void rotate_queries(const Step& step, int64_t first, int64_t tokens, float* to) const {
    const float* from = step.f32(q_) + first * q_.width;
    for_rows(step, tokens, 2 * q_.width, [&](int64_t i, int) {
      float* q = to + i * q_.width;
      std::copy_n(from + i * q_.width, q_.width, q);
      for (int64_t head = 0; head < index_.heads; ++head) rope_.rotate(step, first + i, q + head * index_.dim);
      rotate_heads(step, q, index_.heads, index_.dim);
    });
  }

  IndexShape index_;
  float eps_;
  Rope rope_;
  Buffer q_, k_, weights_;
  WeightRef norm_, bias_;
  size_t entry_;
};

}  // namespace

OpPtr make_sparse_mla_attention(const OpSpec& spec) { return std::make_unique<SparseMlaAttention>(spec); }

}  // namespace deepmnn
