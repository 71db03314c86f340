#include "ops/gemm.h"
#include "ops/mla.h"

namespace deepmnn {
namespace {

constexpr int64_t kExpandedFloats = 8 << 20;  // keys and values rebuilt at once: 32 MiB, or one head

// The weights, and scratch for the longest of the sequences.
struct Room {
  Weight w_uk, w_uv;
  float* q;       // [tokens, heads, nope + rope], rotated
  float* rows;    // [context, rank + rope] of the cache as float32
  float* k;       // [context, group, nope + rope]
  float* v;       // [context, group, v]
  int64_t group;  // heads at once
  AttendRoom attend;
  QuantizedRows latents;
  uint16_t* mask;  // [tokens / 16, context]: which rows they attend to; null: all that they see
};

Room take_room(Step& step, const Mla& mla, const int64_t* sequences, int64_t count, bool masked) {
  int64_t tokens = 0, context = 0;
  for (int64_t i = 0; i < count; ++i) {
    tokens = std::max(tokens, step.batch.tokens_of(sequences[i]));
    context = std::max<int64_t>(context, step.batch.context_lengths[sequences[i]]);
  }
  Room room;
  room.w_uk = step.pin(mla.w_uk);
  room.w_uv = step.pin(mla.w_uv);
  room.group = std::clamp<int64_t>(kExpandedFloats / (context * (mla.qk_dim() + mla.v_dim)), 1, mla.heads);
  room.q = step.scratch.take<float>(tokens * mla.q.width);
  room.rows = step.scratch.take<float>(context * mla.row_width());
  room.k = step.scratch.take<float>(context * room.group * mla.qk_dim());
  room.v = step.scratch.take<float>(context * room.group * mla.v_dim);
  room.mask = masked ? step.scratch.take<uint16_t>((tokens + 15) / 16 * context) : nullptr;
  room.attend = take_attend_room(step, {mla.qk_dim(), mla.v_dim, mla.scale});
  return room;
}

void rotate_queries(Step& step, const Mla& mla, int64_t first_token, int64_t tokens, float* to) {
  const float* from = step.f32(mla.q) + first_token * mla.q.width;
  for_rows(step, tokens, mla.q.width, [&](int64_t i, int) {
    float* q = to + i * mla.q.width;
    std::copy_n(from + i * mla.q.width, mla.q.width, q);
    for (int64_t head = 0; head < mla.heads; ++head) {
      mla.rope.rotate(step, first_token + i, q + head * mla.qk_dim() + mla.nope);
    }
  });
}

LinearTask expand(const Mla& mla, const Weight& weight, const Room& room, int64_t context) {
  LinearTask task;
  task.weight = weight;
  task.out_cols = weight.rows;
  task.rows.x = room.rows;
  task.rows.stride = mla.row_width();
  task.rows.n = context;
  return task;
}

// Fills room.k and room.v with heads [first, first + heads).
void rebuild(Step& step, const Mla& mla, const Room& room, int64_t context, int64_t first, int64_t heads) {
  LinearTask* tasks = step.scratch.take<LinearTask>(2 * heads);
  for (int64_t i = 0; i < heads; ++i) {
    LinearTask& k = tasks[2 * i] = expand(mla, head_matrix(room.w_uk, first + i, mla.nope), room, context);
    k.rows.quantized = room.latents;
    k.y = room.k + i * mla.qk_dim();
    k.y_stride = heads * mla.qk_dim();
    LinearTask& v = tasks[2 * i + 1] = expand(mla, head_matrix(room.w_uv, first + i, mla.v_dim), room, context);
    v.rows.quantized = room.latents;
    v.y = room.v + i * mla.v_dim;
    v.y_stride = heads * mla.v_dim;
  }
  run_linear(step, tasks, 2 * heads);
  for_rows(step, context, heads * mla.rope_dim, [&](int64_t row, int) {
    const float* k_pe = room.rows + row * mla.row_width() + mla.rank;
    float* k = room.k + row * heads * mla.qk_dim() + mla.nope;
    for (int64_t i = 0; i < heads; ++i) std::copy_n(k_pe, mla.rope_dim, k + i * mla.qk_dim());
  });
}

void attend_heads(Step& step, const Mla& mla, const Room& room, int64_t sequence, int64_t first, int64_t heads) {
  const int64_t token = step.batch.sequence_starts[sequence];
  AttendJob* jobs = step.scratch.take<AttendJob>(heads);
  for (int64_t i = 0; i < heads; ++i) {
    AttendJob job;
    job.keys.k = float_rows(room.k + i * mla.qk_dim(), heads * mla.qk_dim());
    job.keys.v = float_rows(room.v + i * mla.v_dim, heads * mla.v_dim);
    job.q = room.q + (first + i) * mla.qk_dim();
    job.q_stride = mla.q.width;
    job.tokens = step.batch.tokens_of(sequence);
    job.history = step.batch.history(sequence);
    job.mask = room.mask;
    job.out = step.f32(mla.y) + token * mla.y.width + (first + i) * mla.v_dim;
    job.out_token_stride = mla.y.width;
    jobs[i] = job;
  }
  attend(step, {mla.qk_dim(), mla.v_dim, mla.scale}, room.attend, jobs, heads);
}

// rows: of each of the sequence's tokens.
void fill_mask(Step& step, const Room& room, const ChosenRows& chosen, int64_t sequence) {
  const int64_t tokens = step.batch.tokens_of(sequence), context = step.batch.context_lengths[sequence];
  for_rows(step, (tokens + 15) / 16, context, [&](int64_t sixteen, int) {
    uint16_t* mask = room.mask + sixteen * context;
    std::fill_n(mask, context, uint16_t{0});
    for (int64_t i = 0; i < std::min<int64_t>(16, tokens - 16 * sixteen); ++i) {
      const int32_t* rows = chosen.rows + (16 * sixteen + i) * chosen.top_k;
      for (int64_t n = 0; n < chosen.top_k && rows[n] >= 0; ++n) {
        mask[rows[n]] = static_cast<uint16_t>(mask[rows[n]] | 1u << i);
      }
    }
  });
}

void run_sequence(Step& step, const Mla& mla, Room& room, int64_t sequence) {
  const int64_t context = step.batch.context_lengths[sequence], width = mla.row_width();
  rotate_queries(step, mla, step.batch.sequence_starts[sequence], step.batch.tokens_of(sequence), room.q);
  for_rows(step, context, width, [&](int64_t row, int) {
    load_row(step, mla.entry, step.slot(sequence, row), width, room.rows + row * width);
    mla.unrotate_row(step, room.rows + row * width);
  });
  if (mla.quantized()) {
    room.latents = quantize(step, room.rows, width, context, mla.rank, RowForm::rotated);
  }
  for (int64_t first = 0; first < mla.heads; first += room.group) {
    const int64_t heads = std::min(room.group, mla.heads - first);
    rebuild(step, mla, room, context, first, heads);
    attend_heads(step, mla, room, sequence, first, heads);
  }
}

}  // namespace

void run_expanded(Step& step, const Mla& mla, const int64_t* sequences, int64_t count, const ChosenRows& chosen) {
  Room room = take_room(step, mla, sequences, count, chosen.rows != nullptr);
  ChosenRows rows = chosen;
  for (int64_t i = 0; i < count; ++i) {
    const Scratch::Mark mark = step.scratch.mark();
    if (room.mask) {
      fill_mask(step, room, rows, sequences[i]);
      rows.rows += step.batch.tokens_of(sequences[i]) * rows.top_k;
    }
    run_sequence(step, mla, room, sequences[i]);
    step.scratch.rewind(mark);
  }
}

}  // namespace deepmnn
