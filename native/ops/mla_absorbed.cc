#include "ops/cache_rows.h"
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

constexpr int64_t kSparseTokens = 32;  // attend to rows of their own at once: each has 128 queries of a row's width
constexpr int64_t kRowsAtOnce = 16;    // tokens of one head that a thread takes

// Per head y[:, head] = W_head x[:, head], or its transposed matrix times x. x is [n, heads, x_width], of which the
// matrix reads the first columns, and y [n, heads, y_width], of which it writes the first. tokens: rows of x, null: the
// first n.
struct PerHead {
  const Weight& weight;
  int64_t rows;  // of one head
  bool transposed;
  const float* x;
  int64_t x_width;
  float* y;
  int64_t y_width;
  const int32_t* tokens;
  int64_t n;
};

LinearTask task_of(const PerHead& p, int64_t heads, int64_t head, int64_t first) {
  LinearTask task;
  task.weight = head_matrix(p.weight, head, p.rows);
  task.rows.n = std::min(kRowsAtOnce, p.n - first);
  task.rows.stride = heads * p.x_width;
  task.rows.x = p.x + head * p.x_width + (p.tokens ? 0 : first * task.rows.stride);
  task.rows.index = p.tokens ? p.tokens + first : nullptr;
  task.y_stride = heads * p.y_width;
  task.y = p.y + head * p.y_width + first * task.y_stride;
  task.out_cols = p.transposed ? p.weight.cols : p.rows;
  return task;
}

void run_per_head(Step& step, int64_t heads, const PerHead& p) {
  const auto kernel = p.transposed ? step.kernels.float_linear_transposed : step.kernels.float_linear;
  const int64_t pieces = (p.n + kRowsAtOnce - 1) / kRowsAtOnce;
  step.pool.run(heads * pieces,
                [&](int64_t item, int) { kernel(task_of(p, heads, item / pieces, item % pieces * kRowsAtOnce)); });
}

// [n, heads, rank + rope]: transposed(w_uk) q_nope, then q_pe after RoPE, as rows of the cache hold their like.
float* latent_queries(Step& step, const Mla& mla, const Weight& w_uk, const Chosen& chosen) {
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
  run_per_head(step, heads, {w_uk, mla.nope, true, q, mla.qk_dim(), queries, width, chosen.tokens, chosen.n});
  if (step.cache.type() == CacheType::int8) {
    for_rows(step, chosen.n * heads, 2 * width, [&](int64_t i, int) { mla.rotate_row(step, queries + i * width); });
  }
  return queries;
}

// What the attention of these tokens works on: [tokens, heads] of queries and of their answers, sums of latents.
struct Latents {
  const float* queries;
  float* sums;
};

// The attention of the tokens from `first` on; whose, and to which rows, is left to fill in.
AttendJob job_of(const Step& step, const Mla& mla, const Latents& latents, int64_t first) {
  AttendJob job;
  job.keys.type = step.cache.type();
  job.keys.k = job.keys.v = cache_rows(step, mla.entry, 0);
  job.q = latents.queries + first * mla.heads * mla.row_width();
  job.q_stride = mla.row_width();
  job.per_token = mla.heads;
  job.out = latents.sums + first * mla.heads * mla.rank;
  job.out_token_stride = mla.heads * mla.rank;
  job.out_query_stride = mla.rank;
  return job;
}

AttendShape shape_of(const Mla& mla) { return {mla.row_width(), mla.rank, mla.scale}; }

void project(Step& step, const Mla& mla, const Weight& w_uv, const Latents& latents, const Chosen& chosen) {
  const bool all = chosen.n == step.batch.tokens;
  float* y = step.f32(mla.y);
  float* out = all ? y : step.scratch.take<float>(chosen.n * mla.y.width);
  run_per_head(step, mla.heads, {w_uv, mla.v_dim, false, latents.sums, mla.rank, out, mla.v_dim, nullptr, chosen.n});
  if (all) return;
  for_rows(step, chosen.n, mla.y.width, [&](int64_t i, int) {
    std::copy_n(out + i * mla.y.width, mla.y.width, y + chosen.tokens[i] * mla.y.width);
  });
}

// Where a token's rows lie.
struct TokenRows {
  const int32_t* slots;
  int64_t n;
  bool split;  // as if the token came alone
};

// Of all tokens of the sequences; the slots take the rows' place.
TokenRows* find_slots(Step& step, const int64_t* sequences, int64_t count, int64_t tokens, const ChosenRows& chosen) {
  TokenRows* found = step.scratch.take<TokenRows>(tokens);
  for (int64_t i = 0, first = 0; i < count; ++i) {
    const int64_t s = sequences[i], own = step.batch.tokens_of(s);
    for_rows(step, own, 4 * chosen.top_k, [&](int64_t t, int) {
      int32_t* rows = chosen.rows + (first + t) * chosen.top_k;
      int64_t n = 0;
      for (; n < chosen.top_k && rows[n] >= 0; ++n) rows[n] = static_cast<int32_t>(step.slot(s, rows[n]));
      found[first + t] = {rows, n, own <= kAloneTokens};
    });
    first += own;
  }
  return found;
}

}  // namespace

void run_absorbed(Step& step, const Mla& mla, const int64_t* sequences, int64_t count) {
  const Chosen chosen = choose(step, sequences, count);
  const Weight w_uk = step.pin(mla.w_uk), w_uv = step.pin(mla.w_uv);
  const Latents latents{latent_queries(step, mla, w_uk, chosen),
                        step.scratch.take<float>(chosen.n * mla.heads * mla.rank)};
  AttendJob* jobs = step.scratch.take<AttendJob>(count);
  int64_t first = 0;
  for (int64_t i = 0; i < count; ++i) {
    AttendJob& job = jobs[i] = job_of(step, mla, latents, first);
    job.keys.table = step.batch.table(sequences[i]);
    job.keys.block_size = step.cache.block_size();
    job.tokens = step.batch.tokens_of(sequences[i]);
    job.history = step.batch.history(sequences[i]);
    first += job.tokens;
  }
  attend(step, shape_of(mla), jobs, count);
  project(step, mla, w_uv, latents, chosen);
}

void run_absorbed(Step& step, const Mla& mla, const int64_t* sequences, int64_t count, const ChosenRows& chosen) {
  const Chosen tokens = choose(step, sequences, count);
  const Weight w_uk = step.pin(mla.w_uk), w_uv = step.pin(mla.w_uv);
  const TokenRows* rows = find_slots(step, sequences, count, tokens.n, chosen);
  AttendJob* jobs = step.scratch.take<AttendJob>(kSparseTokens);
  const AttendRoom room = take_attend_room(step, shape_of(mla));
  for (int64_t first = 0; first < tokens.n; first += kSparseTokens) {
    const Scratch::Mark mark = step.scratch.mark();
    const Chosen some{tokens.tokens + first, std::min(kSparseTokens, tokens.n - first)};
    const Latents latents{latent_queries(step, mla, w_uk, some),
                          step.scratch.take<float>(some.n * mla.heads * mla.rank)};
    for (int64_t i = 0; i < some.n; ++i) {
      AttendJob& job = jobs[i] = job_of(step, mla, latents, i);
      job.keys.table = rows[first + i].slots;
      job.tokens = 1;
      job.history = rows[first + i].n - 1;
      job.whole = !rows[first + i].split;
    }
    attend(step, shape_of(mla), room, jobs, some.n);
    project(step, mla, w_uv, latents, some);
    step.scratch.rewind(mark);
  }
}

}  // namespace deepmnn
