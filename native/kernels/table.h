// Instantiates every kernel for the vectors of the isa header included before, and collects them in a table.
#pragma once

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/float_linear.h"
#include "kernels/index_scores.h"
#include "kernels/kernels.h"
#include "kernels/layout.h"
#include "kernels/linear.h"
#include "kernels/logits.h"
#include "kernels/norm.h"
#include "kernels/peak.h"
#include "kernels/quantize_rows.h"
#include "kernels/rotate_heads.h"
#include "kernels/rounding.h"

namespace deepmnn::DEEPMNN_NS {

#define DEEPMNN_TEXT_OF(name) #name
#define DEEPMNN_TEXT(name) DEEPMNN_TEXT_OF(name)

extern const Kernels kTable;
const Kernels kTable = {
    DEEPMNN_TEXT(DEEPMNN_NS),
    linear_kernel,
    float_linear_kernel,
    float_linear_transposed_kernel,
    quantize_rows_kernel,
    round_row_kernel,
    quantize_cache_kernel,
    rotate_heads_kernel,
    unrotate_heads_kernel,
    rotate_rows_kernel,
    round_panel_kernel,
    pack_panel_kernel,
    pack_floats_kernel,
    decode_row_kernel,
    rms_norm_kernel,
    add_rms_norm_kernel,
    add_kernel,
    mul_kernel,
    axpy_kernel,
    scale_kernel,
    silu_kernel,
    sigmoid_kernel,
    softmax_kernel,
    rope_kernel,
    attention_kernel,
    to_bf16_kernel,
    argmax_kernel,
    find_above_kernel,
    exp_sum_kernel,
    peak_dot_kernel,
    peak_fma_kernel,
    layer_norm_kernel,
    index_scores_kernel,
};

}  // namespace deepmnn::DEEPMNN_NS
