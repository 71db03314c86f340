#include <algorithm>
#include <iterator>

#include "ops/ops.h"

namespace deepmnn {
namespace {

struct Entry {
  const char* name;
  OpPtr (*make)(const OpSpec& spec);
  bool reads_quantized = false;  // its input, where its matrix is quantised
};

constexpr Entry kOps[] = {
    {"embedding", make_embedding},
    {"linear", make_linear, true},
    {"rms_norm", make_rms_norm},
    {"reshape", make_reshape},
    {"split", make_split},
    {"concat", make_concat},
    {"broadcast", make_broadcast},
    {"rope", make_rope},
    {"cache", make_cache},
    {"attention", make_attention},
    {"silu", make_silu},
    {"sigmoid", make_sigmoid},
    {"softmax", make_softmax},
    {"add", make_add},
    {"mul", make_mul},
    {"bias_add", make_bias_add},
    {"scale", make_scale},
    {"group_limit", make_group_limit},
    {"top_k", make_top_k},
    {"gather", make_gather},
    {"normalize", make_normalize},
    {"expert_linear", make_expert_linear},
    {"combine", make_combine},
    {"select_rows", make_select_rows},
    {"add_rms_norm", make_add_rms_norm},
    {"swiglu", make_swiglu, true},
    {"gqa_attention", make_gqa_attention},
    {"mla_attention", make_mla_attention},
    {"route", make_route},
    {"moe", make_moe},
    {"layer_norm", make_layer_norm},
    {"select_keys", make_select_keys},
    {"sparse_attention", make_sparse_attention},
    {"sparse_mla_attention", make_sparse_mla_attention},
    {"sqrt_softplus", make_sqrt_softplus},
    {"clamp", make_clamp},
    {"add_constant", make_add_constant},
    {"gain", make_gain},
    {"lookup", make_lookup},
    {"mix", make_mix},
    {"sinkhorn", make_sinkhorn},
    {"compress", make_compress},
    {"window_attention", make_window_attention},
    {"grouped_linear", make_grouped_linear},
    {"hash_route", make_hash_route},
    {"hyper_in", make_hyper_in},
    {"hyper_out", make_hyper_out},
    {"sliding_attention", make_sliding_attention},
    {"heavily_compressed_attention", make_heavily_compressed_attention},
    {"compressed_sparse_attention", make_compressed_sparse_attention},
};

const Entry* find(const std::string& name) {
  const Entry* found = std::find_if(std::begin(kOps), std::end(kOps), [&](const Entry& op) { return op.name == name; });
  return found == std::end(kOps) ? nullptr : found;
}

}  // namespace

OpPtr make_op(const OpSpec& spec, const std::string& name) {
  const Entry* entry = find(name);
  if (!entry) spec.reject("unknown op", "one this version has; convert the model again");
  return entry->make(spec);
}

RowForm reads_quantized(const Program& program, const Instruction& instruction) {
  const Entry* entry = find(instruction.op);
  if (!entry || !entry->reads_quantized || instruction.weights.empty()) return RowForm::floats;
  return form_of(program.weights[instruction.weights[0].id].format);
}

}  // namespace deepmnn
