// The constructors of all ops, one for each name in docs/ops.md (table.cc maps the names).
#pragma once

#include <memory>

#include "runtime/op.h"

namespace deepmnn {

using OpPtr = std::unique_ptr<Op>;

OpPtr make_embedding(const OpSpec& spec);
OpPtr make_linear(const OpSpec& spec);
OpPtr make_swiglu(const OpSpec& spec);
OpPtr make_rms_norm(const OpSpec& spec);
OpPtr make_add_rms_norm(const OpSpec& spec);
OpPtr make_reshape(const OpSpec& spec);
OpPtr make_split(const OpSpec& spec);
OpPtr make_concat(const OpSpec& spec);
OpPtr make_broadcast(const OpSpec& spec);
OpPtr make_select_rows(const OpSpec& spec);
OpPtr make_rope(const OpSpec& spec);
OpPtr make_cache(const OpSpec& spec);
OpPtr make_attention(const OpSpec& spec);
OpPtr make_gqa_attention(const OpSpec& spec);
OpPtr make_mla_attention(const OpSpec& spec);
OpPtr make_silu(const OpSpec& spec);
OpPtr make_sigmoid(const OpSpec& spec);
OpPtr make_softmax(const OpSpec& spec);
OpPtr make_add(const OpSpec& spec);
OpPtr make_mul(const OpSpec& spec);
OpPtr make_bias_add(const OpSpec& spec);
OpPtr make_scale(const OpSpec& spec);
OpPtr make_group_limit(const OpSpec& spec);
OpPtr make_top_k(const OpSpec& spec);
OpPtr make_gather(const OpSpec& spec);
OpPtr make_normalize(const OpSpec& spec);
OpPtr make_route(const OpSpec& spec);
OpPtr make_expert_linear(const OpSpec& spec);
OpPtr make_combine(const OpSpec& spec);
OpPtr make_moe(const OpSpec& spec);
OpPtr make_layer_norm(const OpSpec& spec);
OpPtr make_sparse_mla_attention(const OpSpec& spec);
OpPtr make_select_keys(const OpSpec& spec);
OpPtr make_sparse_attention(const OpSpec& spec);
OpPtr make_sqrt_softplus(const OpSpec& spec);
OpPtr make_clamp(const OpSpec& spec);
OpPtr make_add_constant(const OpSpec& spec);
OpPtr make_gain(const OpSpec& spec);
OpPtr make_lookup(const OpSpec& spec);
OpPtr make_mix(const OpSpec& spec);
OpPtr make_sinkhorn(const OpSpec& spec);
OpPtr make_compress(const OpSpec& spec);
OpPtr make_window_attention(const OpSpec& spec);
OpPtr make_grouped_linear(const OpSpec& spec);
OpPtr make_hash_route(const OpSpec& spec);
OpPtr make_hyper_in(const OpSpec& spec);
OpPtr make_hyper_out(const OpSpec& spec);
OpPtr make_sliding_attention(const OpSpec& spec);
OpPtr make_heavily_compressed_attention(const OpSpec& spec);
OpPtr make_compressed_sparse_attention(const OpSpec& spec);

}  // namespace deepmnn
