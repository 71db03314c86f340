from __future__ import annotations

import numpy as np
import pytest

from deepmnn.graph.levels import optimize
from deepmnn.models import build
from deepmnn.quant import recipes
from deepmnn.workload import Experts, Workload
from tiny_artifact import CONFIG
from tiny_models import ALL, CONFIGS, LLAMA


def workload(config: dict[str, object], level: int, quant: str = "fp32") -> Workload:
    graph = optimize(build(config), level)[0]
    recipes.apply(graph, quant)
    return Workload.of(graph)


def test_a_dense_model_multiplies_every_matrix_once() -> None:
    """By torch's own count of a Llama's parameters."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA)
    model = transformers.LlamaForCausalLM(config)
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.ndim == 2}
    head, table = matrices.pop("lm_head.weight"), matrices.pop("model.embed_tokens.weight")
    found = workload({**config.to_dict(), "model_type": "llama"}, 0)
    assert (found.dense_macs, found.row_macs) == (sum(matrices.values()), head)
    assert found.embedding_nbytes * LLAMA["vocab_size"] == pytest.approx(4 * table, rel=0.2)
    heads, layers, width = 3, 2, 12
    assert found.context_macs == layers * heads * 2 * width
    assert found.cache_width == layers * 2 * heads * width
    assert found.macs(10, 5, 1) == 10 * (sum(matrices.values()) + 5 * found.context_macs) + head
    assert found.decode_nbytes(3, 7) == pytest.approx(
        found.dense_nbytes + 3 * found.embedding_nbytes + 3 * 7 * found.cache_width * 4
    )


@pytest.mark.parametrize("model_type", [t for t in CONFIGS if t in ("llama", "qwen2", "qwen3")])
def test_fusion_changes_no_cost(model_type: str) -> None:
    for _, index in [pair for pair in ALL if pair[0] == model_type]:
        config = {"model_type": model_type, **CONFIGS[model_type][index]}
        plain, fused = workload(config, 0), workload(config, 3)
        assert plain.row_macs == fused.row_macs
        assert plain.context_macs == fused.context_macs
        # swiglu pads gate and up to whole blocks of 16 rows.
        assert plain.dense_macs <= fused.dense_macs <= 1.5 * plain.dense_macs


def test_quantisation_shrinks_the_bytes_only() -> None:
    wide = {**CONFIG, "hidden_size": 256, "moe_intermediate_size": 64, "intermediate_size": 256}
    full, small = workload(wide, 3), workload(wide, 3, "w4")
    assert small.dense_macs == full.dense_macs
    assert small.decode_nbytes(1, 0) < 0.35 * full.decode_nbytes(1, 0)


def test_routed_experts() -> None:
    found = workload(CONFIG, 3)
    (layer,) = found.experts
    assert (layer.experts, layer.top_k) == (6, 2)
    assert layer.macs >= 3 * 40 * 19
    rng = np.random.default_rng(0)
    layer = Experts(16, 3, 1.0, 1.0)
    for tokens in (1, 2, 5, 40):
        drawn = [
            len({e for _ in range(tokens) for e in rng.choice(16, 3, replace=False)})
            for _ in range(2000)
        ]
        assert layer.touched(tokens) == pytest.approx(np.mean(drawn), rel=0.02)
