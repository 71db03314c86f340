#include "ops/attend.h"
#include "ops/mla.h"
#include "ops/ops.h"

namespace deepmnn {

void LatentOp::read_latent(const OpSpec& spec) {
  mla_.heads = spec.int_attr("heads", 1, kMaxExtentAttr);
  mla_.rank = spec.int_attr("kv_lora_rank", 1, kMaxExtentAttr);
  mla_.nope = spec.int_attr("qk_nope_head_dim", 1, kMaxExtentAttr);
  mla_.rope_dim = spec.int_attr("qk_rope_head_dim", 2, kMaxExtentAttr);
  mla_.v_dim = spec.int_attr("v_head_dim", 1, kMaxExtentAttr);
  mla_.scale = spec.float_attr("scale");
  eps_ = spec.float_attr("eps");
  mla_.q = spec.input(0, Dim::tokens, mla_.heads * mla_.qk_dim());
  kv_ = spec.input(1, Dim::tokens, mla_.row_width());
  spec.require_graph_input(2, "positions");
  mla_.y = spec.output(0, Dim::tokens, mla_.heads * mla_.v_dim);
  mla_.rope = Rope(spec, mla_.rope_dim);
  mla_.entry = spec.cache(0, mla_.row_width());
  norm_ = spec.vector(0, mla_.rank);
  mla_.w_uk = spec.matrix(1, mla_.heads * padded_rows(mla_.nope), mla_.rank);
  mla_.w_uv = spec.matrix(2, mla_.heads * padded_rows(mla_.v_dim), mla_.rank);
  spec.require(!is_kept(mla_.w_uk.format) && !is_kept(mla_.w_uv.format), "up-projections in a kept format",
               "one that is rotated, or floats: latents are multiplied in two ways");
}

void LatentOp::write_latents(Step& step) const {
  const float *kv = step.f32(kv_), *norm = step.pin_vector(norm_);
  const int64_t width = mla_.row_width();
  float* rows = step.scratch.take<float>(step.pool.size() * width);
  const bool rounded = mla_.quantized() && step.cache.type() != CacheType::int8;  // which rounds them itself
  for_rows(step, step.n(kv_), 2 * width, [&](int64_t token, int worker) {
    const float* from = kv + token * width;
    float* row = rows + worker * width;
    step.kernels.rms_norm(from, norm, eps_, mla_.rank, row);
    if (rounded) step.kernels.round_row(row, mla_.rank, row);
    std::copy_n(from + mla_.rank, mla_.rope_dim, row + mla_.rank);
    mla_.rope.rotate(step, token, row + mla_.rank);
    mla_.rotate_row(step, row);
    store_row(step, row, width, mla_.entry, step.slots[token]);
  });
}

void LatentOp::attend_all(Step& step, const int64_t* sequences, int64_t count) const {
  int64_t* absorbed = step.scratch.take<int64_t>(count);
  int64_t* expanded = step.scratch.take<int64_t>(count);
  int64_t n_absorbed = 0, n_expanded = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t s = sequences[i];
    if (wants_expanded(step, s, step.batch.context_lengths[s])) {
      expanded[n_expanded++] = s;
    } else {
      absorbed[n_absorbed++] = s;
    }
  }
  const Scratch::Mark mark = step.scratch.mark();
  if (n_absorbed) run_absorbed(step, mla_, absorbed, n_absorbed);
  step.scratch.rewind(mark);
  if (n_expanded) run_expanded(step, mla_, expanded, n_expanded);
  step.scratch.rewind(mark);
}

// Absorbed, a query costs 2 rank + rope for each row that it attends to, expanded nope + rope + v for each that it
// sees; but then each key costs rank (nope + v) to rebuild. That is what a new token costs absorbed, too: only the
// cached ones count.
bool LatentOp::wants_expanded(const Step& step, int64_t sequence, int64_t most) const {
  if (step.mla_form != MlaForm::automatic) return step.mla_form == MlaForm::expanded;
  const int64_t count = step.batch.tokens_of(sequence);
  // As each of them would alone, once there is history: guesses must not change the form.
  const double tokens = count <= kAloneTokens && step.batch.history(sequence) > 0 ? 1.0 : static_cast<double>(count);
  const double history = static_cast<double>(step.batch.history(sequence));
  const double seen = history + (tokens + 1) / 2, read = std::min(seen, static_cast<double>(most));
  const double absorbed = read * static_cast<double>(2 * mla_.rank + mla_.rope_dim);
  const double expanded = seen * static_cast<double>(mla_.nope + mla_.rope_dim + mla_.v_dim);
  return tokens * (absorbed - expanded) >
         history * static_cast<double>(mla_.rank) * static_cast<double>(mla_.nope + mla_.v_dim);
}

namespace {

class MlaAttention : public LatentOp {
 public:
  explicit MlaAttention(const OpSpec& spec) {
    spec.require_counts(3, 1, 3);
    read_latent(spec);
  }

  void run(Step& step) override {
    write_latents(step);
    const int64_t count = step.batch.sequences;
    int64_t* sequences = step.scratch.take<int64_t>(count);
    for (int64_t s = 0; s < count; ++s) sequences[s] = s;
    attend_all(step, sequences, count);
  }
};

}  // namespace

OpPtr make_mla_attention(const OpSpec& spec) { return std::make_unique<MlaAttention>(spec); }

}  // namespace deepmnn
