// Multi-head latent attention (arXiv:2405.04434): what its two forms share. Both read the same cache, one row
// [latent, rotated key] per token, and the same weights. Both compute the same numbers, up to the last bits of a float:
// where w_uk or w_uv is quantised, latents are rounded to int8 before they are cached, which is how the expanded form
// multiplies them, and what the absorbed form multiplies (queries, sums of latents) is not rounded.
#pragma once

#include "ops/attend.h"
#include "ops/cache_rows.h"
#include "ops/rope.h"

namespace deepmnn {

struct Mla {
  int64_t heads = 0;
  int64_t rank = 0;  // kv_lora_rank
  int64_t nope = 0;  // qk_nope_head_dim
  int64_t rope_dim = 0;
  int64_t v_dim = 0;
  float scale = 1.0f;
  Rope rope;
  size_t entry = 0;      // cache entry
  Buffer q, y;           // [tokens, heads, nope + rope] → [tokens, heads, v]
  WeightRef w_uk, w_uv;  // per head [nope, rank], [v, rank], padded to whole blocks

  int64_t qk_dim() const { return nope + rope_dim; }
  int64_t row_width() const { return rank + rope_dim; }
  // Whether the expanded form multiplies latents that are rounded.
  bool quantized() const { return is_quantized(w_uk.format) || is_quantized(w_uv.format); }

  // Two heads of a row or a latent query, so that the latents alone, as values, are rotated like their output.
  void rotate_row(const Step& step, float* row) const {
    rotate_heads(step, row, 1, rank);
    rotate_heads(step, row + rank, 1, rope_dim);
  }
  void unrotate_row(const Step& step, float* row) const {
    unrotate_heads(step, row, 1, rank);
    unrotate_heads(step, row + rank, 1, rope_dim);
  }
};

inline int64_t padded_rows(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows * kBlockRows; }

// Rows of one head of a matrix whose heads start at whole blocks.
inline Weight head_matrix(const Weight& weight, int64_t head, int64_t rows) {
  Weight one = weight;
  one.data += head * (padded_rows(rows) / kBlockRows) * block_nbytes(weight.format, weight.cols);
  one.rows = rows;
  return one;
}

// Rows of its sequence that each token attends to, for the tokens of some sequences in order.
struct ChosenRows {
  int32_t* rows = nullptr;  // [tokens, top_k]: ascending, -1 behind the last; null: all that a token sees
  int64_t top_k = 0;
};

// The new tokens of these sequences: queries moved into the latent space, the cache's rows as keys and values. Little
// memory traffic: for few tokens.
void run_absorbed(Step& step, const Mla& mla, const int64_t* sequences, int64_t count);
// To chosen rows alone, which it overwrites.
void run_absorbed(Step& step, const Mla& mla, const int64_t* sequences, int64_t count, const ChosenRows& chosen);

// The same with keys and values rebuilt from the latents, some heads at a time. Fewer operations for many tokens. To
// chosen rows all keys are rebuilt, and the others masked: tokens choose differently.
void run_expanded(Step& step, const Mla& mla, const int64_t* sequences, int64_t count, const ChosenRows& chosen = {});

// What ops with latent attention share: sizes, the new rows of the cache, and attention to all rows.
class LatentOp : public Op {
 protected:
  // Its first three inputs and weights, and cache entry 0.
  void read_latent(const OpSpec& spec);
  void write_latents(Step& step) const;
  // The new tokens of these sequences, each in the form that takes fewer operations.
  void attend_all(Step& step, const int64_t* sequences, int64_t count) const;
  // Of a sequence whose tokens attend to at most so many rows.
  bool wants_expanded(const Step& step, int64_t sequence, int64_t most) const;

  Mla mla_;

 private:
  Buffer kv_;
  WeightRef norm_;
  float eps_ = 0.0f;
};

}  // namespace deepmnn
