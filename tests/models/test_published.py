"""Published configs: their graphs have the published sizes and read the published tensors."""

import math
from typing import Any

import pytest
from safetensors import safe_open

from deepmnn.graph.ir import Graph
from deepmnn.graph.verify import verify
from deepmnn.graph.weights import Tensor
from deepmnn.models import build
from tiny_models import ALL, tiny_checkpoint

V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "ep_size": 1,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "attention_bias": False,
    "torch_dtype": "bfloat16",
}
V2_LITE: dict[str, Any] = V3 | {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "routed_scaling_factor": 1.0,
    "q_lora_rank": None,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
}
V2: dict[str, Any] = V2_LITE | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 160,
    "routed_scaling_factor": 16.0,
    "q_lora_rank": 1536,
    "topk_method": "group_limited_greedy",
    "n_group": 8,
    "topk_group": 3,
}
MOE_16B: dict[str, Any] = {
    "model_type": "deepseek",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
}
DISTILL_QWEN_1_5B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "rope_theta": 10000,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
SIZES = [
    # billions of parameters, from the model cards and reports
    (V3, 671.0),
    (V2, 236.0),
    (V2_LITE, 15.7),
    (MOE_16B, 16.4),
    (DISTILL_QWEN_1_5B, 1.78),
]


def parameters(graph: Graph) -> int:
    kept = set(graph.kept)
    return sum(math.prod(w.shape) for name, w in graph.weights.items() if name not in kept)


@pytest.mark.parametrize(("config", "billions"), SIZES)
def test_published_sizes(config: dict[str, Any], billions: float) -> None:
    graph = build(config)
    verify(graph)
    assert parameters(graph) / 1e9 == pytest.approx(billions, rel=0.004)


def test_mtp_layer_has_the_tensors_of_the_hub() -> None:
    """Layer 61 of DeepSeek-V3's model.safetensors.index.json."""
    graph = build(V3)
    kept = {name.removeprefix("layers.61.") for name in graph.kept}
    rest = {name for name in kept if not name.startswith(("self_attn.", "mlp."))}
    assert rest == {
        "embed_tokens.weight",
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
    }
    assert graph.weights["layers.61.eh_proj.weight"].shape == (7168, 14336)
    blocks = {name for name in kept if name.startswith(("self_attn.", "mlp."))}
    assert blocks == {
        name.removeprefix("layers.60.")
        for name in graph.weights
        if name.startswith(("layers.60.self_attn.", "layers.60.mlp."))
    }
    assert not build(V3 | {"num_nextn_predict_layers": 0}).kept


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_every_tensor_of_a_checkpoint_is_read(tmp_path: Any, model_type: str, index: int) -> None:
    """Except the output head that transformers may write beside tied embeddings."""
    tiny = tiny_checkpoint(model_type, index, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    exprs = [weight.expr for weight in build(tiny.config).weights.values()]
    read = {expr.name: expr.shape for expr in exprs if isinstance(expr, Tensor)}
    assert read.items() <= stored.items()
    assert stored.keys() - read.keys() <= {"lm_head.weight"}
