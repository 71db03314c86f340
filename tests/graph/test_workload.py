from __future__ import annotations

import numpy as np
import pytest

from deepmnn.graph.cost import attended
from deepmnn.graph.levels import optimize
from deepmnn.graph.workload import Experts, Workload
from deepmnn.models import build
from deepmnn.quant.recipe import RECIPES, apply
from tiny_artifact import CONFIG
from tiny_models import ALL, CONFIGS, LLAMA


def workload(
    config: dict[str, object], level: int, quant: str = "fp32", without: str = ""
) -> Workload:
    graph = optimize(build(config), level, disabled=frozenset({without} - {""}))[0]
    apply(graph, RECIPES[quant])
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
        plain, fused = workload(config, 0), workload(config, 3, without="select_rows_early")
        assert plain.row_macs == fused.row_macs
        assert plain.context_macs == fused.context_macs
        # swiglu pads gate and up to whole blocks of 16 rows.
        assert plain.dense_macs <= fused.dense_macs <= 1.5 * plain.dense_macs
        assert workload(config, 3).macs(1, 0, 1) == fused.macs(1, 0, 1)


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_the_last_layer_reads_a_prompt_with_its_attention_alone(
    model_type: str, index: int
) -> None:
    config = {"model_type": model_type, **CONFIGS[model_type][index]}
    last = workload(config, 3).macs(0, 0, 1) - workload(config, 1).macs(0, 0, 1)
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int)
    fewer = workload({**config, "num_hidden_layers": layers - 1}, 3)
    whole = workload(config, 3).macs(1, 0, 1) - fewer.macs(1, 0, 1)
    assert 0.2 * whole < last < whole


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


LATENT = {
    **CONFIG,
    "num_attention_heads": 3,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
}


def test_latent_attention_costs_what_its_two_forms_multiply() -> None:
    found, layers = workload(LATENT, 3), LATENT["num_hidden_layers"]
    assert found.context_macs == layers * 3 * (64 + 8 + 64)
    assert found.whole_context_macs == layers * 3 * (16 + 8 + 32)
    assert found.expand_macs == layers * 3 * 64 * (16 + 32)
    dense = found.macs(1, 0, 0)
    for tokens in (1, 39, 500):  # a prompt's rows are new: making them whole costs no more
        pairs = tokens * (tokens + 1) / 2
        wanted = tokens * dense + pairs * found.whole_context_macs + found.macs(0, 0, 1)
        assert found.prefill_macs([tokens], 512) == pytest.approx(wanted)


def test_few_tokens_after_many_are_absorbed() -> None:
    """The core makes rows whole where n * 80 * (history + (n + 1) / 2) > history * 64 * 48."""
    found, layers = workload(LATENT, 3), LATENT["num_hidden_layers"]
    assert 34 * 80 * (200 + 17.5) < 200 * 64 * 48 < 36 * 80 * (200 + 18.5)
    for tokens, whole in ((34, False), (36, True)):
        spans = found.prefill_macs([200 + tokens], 200) - found.prefill_macs([200], 200)
        seen = tokens * (200 + (tokens + 1) / 2)
        wanted = found.macs(tokens, 0, 0) + seen * found.context_macs
        if whole:
            wanted += 200 * found.expand_macs - seen * layers * 3 * 80
        assert spans == pytest.approx(wanted)


def test_a_chunk_makes_its_whole_history_whole_again() -> None:
    found = workload(LATENT, 3)
    one, two = found.prefill_macs([200], 200), found.prefill_macs([200], 100)
    assert two - one == pytest.approx(100 * found.expand_macs)
    # Of two prompts in steps of 150 tokens the second one's chunks are 50 and 150 tokens long.
    assert found.prefill_macs([100, 200], 150) == pytest.approx(
        found.prefill_macs([100], 100) + found.prefill_macs([200], 200) + 50 * found.expand_macs
    )


def test_an_engine_with_one_form_makes_no_row_whole_twice() -> None:
    both = workload(LATENT, 3)
    for form, macs in {"expanded": both.whole_context_macs, "absorbed": both.context_macs}.items():
        found = both.in_form(form)
        assert found.macs(3, 10, 1) == both.macs(3, 0, 1) + 30 * macs
        assert found.prefill_macs([200], 100) == pytest.approx(found.macs(200, 100.5, 1))
    dense = workload({"model_type": "llama", **LLAMA}, 3)
    assert dense.in_form("expanded") == dense.in_form("") == dense
    assert dense.prefill_macs([9, 5], 4) == pytest.approx(dense.macs(9, 5, 1) + dense.macs(5, 3, 1))


@pytest.mark.parametrize("most", [0, 1, 3, 7, 20])
@pytest.mark.parametrize(("history", "tokens"), [(0, 1), (0, 9), (2, 4), (5, 1), (30, 3)])
def test_rows_that_tokens_attend_to(history: int, tokens: int, most: int) -> None:
    seen = [history + i + 1 for i in range(tokens)]
    want = sum(min(rows, most) if most else rows for rows in seen) / tokens
    assert attended(history, tokens, most) == pytest.approx(want)


@pytest.mark.parametrize("level", [0, 3])
def test_sparse_attention_reads_what_it_chooses(level: int) -> None:
    config = {"model_type": "deepseek_v32", **CONFIGS["deepseek_v32"][0]}
    found, layers = workload(config, level), 2
    assert found.most_context == 7
    width, index = 18 + 6, 14
    scores, attends = 13 * (index + 1) * layers, found.context_macs
    assert found.macs(1, 7, 0) - found.macs(1, 0, 0) == 7 * attends
    assert found.macs(1, 50, 0) - found.macs(1, 0, 0) == 7 * attends + 50 * scores
    if level == 3:
        assert found.cache_width == layers * (width + index)
        assert found.cache_read(7) == 7 * width * layers
        assert found.cache_read(50) == (7 * width + 50 * index) * layers
