#include "ops/gemm.h"
#include "ops/mla.h"

namespace deepmnn {
namespace {

// The tokens of the chosen sequences, in order. Queries, latent outputs and outputs lie in this order.
struct Chosen {
  int32_t* tokens;
  int64_t n;
};

Chosen choose(Step& step, const int64_t* sequences, int64_t count) {
  Chosen chosen{step.scratch.take<int32_t>(step.batch.tokens), 0};
  for (int64_t i = 0; i < count; ++i) {
    const int32_t end = step.batch.sequence_starts[sequences[i] + 1];
    for (int32_t token = step.batch.sequence_starts[sequences[i]]; token < end; ++token) {
      chosen.tokens[chosen.n++] = token;
    }
  }
  return chosen;
}

// Per head one task y[:, head] = W_head x[:, head], where x is [n, heads, weight.cols of x_width] and y [n, heads,
// out of y_width]. tokens: rows of x, null: the first n.
struct PerHead {
  const Weight& weight;
  int64_t out;
  const float* x;
  int64_t x_width;
  float* y;
  int64_t y_width;
  const int32_t* tokens;
  int64_t n;
};

void run_per_head(Step& step, int64_t heads, const PerHead& p) {
  LinearTask* tasks = step.scratch.take<LinearTask>(heads);
  QuantizedRows quantized;  // [heads, n]
  if (is_quantized(p.weight.format)) {
    quantized = take_quantized(step, heads * p.n, p.weight.cols);
    for_rows(step, heads * p.n, p.weight.cols, [&](int64_t row, int) {
      const int64_t head = row / p.n, i = row % p.n;
      const float* x = p.x + ((p.tokens ? p.tokens[i] : i) * heads + head) * p.x_width;
      step.kernels.quantize_rows(x, p.x_width, 1, p.weight.cols, quantized.from(row));
    });
  }
  for (int64_t head = 0; head < heads; ++head) {
    LinearTask task;
    task.weight = head_matrix(p.weight, head, p.out);
    task.rows.n = p.n;
    task.rows.x = p.x + head * p.x_width;
    task.rows.stride = heads * p.x_width;
    task.rows.index = p.tokens;
    if (is_quantized(p.weight.format)) task.rows.quantized = quantized.from(head * p.n);
    task.y = p.y + head * p.y_width;
    task.y_stride = heads * p.y_width;
    task.out_cols = p.out;
    tasks[head] = task;
  }
  run_linear(step, tasks, heads);
}

// [n, heads, rank + rope]: w_uk_t q_nope, then q_pe after RoPE, as rows of the cache hold their like.
float* latent_queries(Step& step, const Mla& mla, const Weight& w_uk_t, const Chosen& chosen) {
  const int64_t heads = mla.heads, width = mla.row_width();
  const float* q = step.f32(mla.q);
  float* queries = step.scratch.take<float>(chosen.n * heads * width);
  for_rows(step, chosen.n, 2 * heads * mla.rope_dim, [&](int64_t i, int) {
    for (int64_t head = 0; head < heads; ++head) {
      float* to = queries + (i * heads + head) * width + mla.rank;
      std::copy_n(q + (chosen.tokens[i] * heads + head) * mla.qk_dim() + mla.nope, mla.rope_dim, to);
      mla.rope.rotate(step, chosen.tokens[i], to);
    }
  });
  run_per_head(step, heads, {w_uk_t, mla.rank, q, mla.qk_dim(), queries, width, chosen.tokens, chosen.n});
  if (step.cache.type() == CacheType::int8) {
    for_rows(step, chosen.n * heads, 2 * width, [&](int64_t i, int) { mla.rotate_row(step, queries + i * width); });
  }
  return queries;
}

}  // namespace

void run_absorbed(Step& step, const Mla& mla, const int64_t* sequences, int64_t count) {
  const Chosen chosen = choose(step, sequences, count);
  const Weight w_uk_t = step.pin(mla.w_uk_t), w_uv = step.pin(mla.w_uv);
  const float* queries = latent_queries(step, mla, w_uk_t, chosen);
  float* latents = step.scratch.take<float>(chosen.n * mla.heads * mla.rank);
  AttendJob* jobs = step.scratch.take<AttendJob>(count);
  int64_t first = 0;
  for (int64_t i = 0; i < count; ++i) {
    AttendJob job;
    job.keys.type = step.cache.type();
    job.keys.k = job.keys.v = cache_rows(step, mla.entry, 0);
    job.keys.table = step.batch.table(sequences[i]);
    job.keys.block_size = step.cache.block_size();
    job.q = queries + first * mla.heads * mla.row_width();
    job.q_stride = mla.row_width();
    job.tokens = step.batch.tokens_of(sequences[i]);
    job.per_token = mla.heads;
    job.history = step.batch.history(sequences[i]);
    job.out = latents + first * mla.heads * mla.rank;
    job.out_token_stride = mla.heads * mla.rank;
    job.out_query_stride = mla.rank;
    jobs[i] = job;
    first += job.tokens;
  }
  attend(step, {mla.row_width(), mla.rank, mla.scale}, jobs, count);

  const bool all = chosen.n == step.batch.tokens;
  float* y = step.f32(mla.y);
  float* out = all ? y : step.scratch.take<float>(chosen.n * mla.y.width);
  run_per_head(step, mla.heads, {w_uv, mla.v_dim, latents, mla.rank, out, mla.v_dim, nullptr, chosen.n});
  if (all) return;
  for_rows(step, chosen.n, mla.y.width, [&](int64_t i, int) {
    std::copy_n(out + i * mla.y.width, mla.y.width, y + chosen.tokens[i] * mla.y.width);
  });
}

}  // namespace deepmnn
