"""Every pass, alone and with the others, on every architecture: same logits, fewer nodes."""

from itertools import pairwise

import numpy as np
import pytest

from deepmnn.errors import RequestError
from deepmnn.graph.levels import MAX_LEVEL, optimize, pass_names
from deepmnn.graph.passes import share_weights
from deepmnn.graph.verify import verify
from deepmnn.models import build
from tiny_models import ALL, CONFIGS

ALL_PASSES = frozenset(pass_names())

PUBLISHED_LAYERS = {
    "llama": 32,  # R1-Distill-Llama-8B
    "qwen2": 28,  # R1-Distill-Qwen-1.5B and 7B
    "qwen3": 36,  # R1-0528-Qwen3-8B
    "deepseek": 28,  # DeepSeek-MoE-16B
    "deepseek_v2": 27,  # DeepSeek-V2-Lite
    "deepseek_v3": 61,  # DeepSeek-V3 and R1
    "deepseek_v4": 43,  # DeepSeek-V4-Flash
    "deepseek_v32": 61,
}


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_levels_keep_the_logits(model_type, index, tiny, random_source, logits):
    graph = tiny(model_type, index)
    source = random_source(graph)
    expected = logits(graph, source)
    for level in range(MAX_LEVEL + 1):
        optimized, _ = optimize(graph, level, source)
        for form in ("expanded", "absorbed"):
            assert_close(logits(optimized, source, form), expected)


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_each_pass_alone_and_missing(model_type, index, tiny, random_source, logits):
    graph = tiny(model_type, index)
    source = random_source(graph)
    expected = logits(graph, source)
    for name in pass_names():
        alone, (result,) = optimize(graph, MAX_LEVEL, disabled=ALL_PASSES - {name})
        if result.rewrites:
            assert_close(logits(alone, source), expected)
            missing, _ = optimize(graph, MAX_LEVEL, disabled=frozenset({name}))
            assert_close(logits(missing, source), expected)


@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_passes_are_idempotent(model_type, index, tiny):
    graph = tiny(model_type, index)
    optimized, first = optimize(graph, MAX_LEVEL)
    again, second = optimize(optimized, MAX_LEVEL)
    assert sum(result.rewrites for result in first) > 0
    assert [result.rewrites for result in second] == [0] * len(second)
    assert again == optimized


@pytest.mark.parametrize(("model_type", "index"), [c for c in ALL if c[0] != "deepseek_v4"])
def test_every_chain_is_fused(model_type, index, tiny):
    """Level 3 of any model holds no plain op that a fused one replaces."""
    graph = tiny(model_type, index)
    counts = optimize(graph, MAX_LEVEL)[0].op_counts()
    plain = {"layer_norm", "select_keys", "sparse_attention"}
    plain |= {"reshape", "split", "concat", "broadcast", "rope", "cache", "attention"}
    plain |= {"expert_linear", "combine", "top_k", "gather", "normalize", "softmax", "sigmoid"}
    assert not plain & counts.keys()
    layers = CONFIGS[model_type][index]["num_hidden_layers"]
    kinds = {"deepseek_v2": "mla", "deepseek_v3": "mla", "deepseek_v32": "sparse_mla"}
    assert counts[f"{kinds.get(model_type, 'gqa')}_attention"] == layers
    assert counts["add_rms_norm"] == 2 * layers
    assert counts["moe"] == counts["route"] == graph.op_counts()["top_k"]


@pytest.mark.parametrize("index", range(len(CONFIGS["deepseek_v4"])))
def test_every_chain_of_deepseek_v4_is_fused(index, tiny):
    """What is left of plain ops are its streams' beginning and end."""
    graph = tiny("deepseek_v4", index)
    before, counts = graph.op_counts(), optimize(graph, MAX_LEVEL)[0].op_counts()
    assert counts["hyper_in"] == before["sinkhorn"] == counts["hyper_out"]
    kinds = ("sliding", "heavily_compressed", "compressed_sparse")
    assert sum(counts[f"{kind}_attention"] for kind in kinds) == before["window_attention"]
    assert counts["compressed_sparse_attention"] == before["select_keys"]
    assert counts["route"] + counts["hash_route"] == counts["moe"] == before["combine"]
    assert counts["hash_route"] == before["lookup"]
    ends = {"embedding", "broadcast", "gain", "bias_add", "sigmoid", "add_constant", "mix"}
    fused = {"hyper_in", "hyper_out", "route", "hash_route", "moe", "swiglu", "grouped_linear"}
    fused |= {f"{kind}_attention" for kind in kinds}
    assert counts.keys() <= ends | fused | {"linear", "rms_norm", "select_rows"}
    assert counts["mix"] == counts["sigmoid"] == 1


def test_the_input_graph_is_not_touched(tiny):
    graph = tiny("deepseek_v3", 0)
    before = graph.copy()
    optimize(graph, MAX_LEVEL)
    assert graph == before
    verify(graph)


def test_level_0_does_nothing(tiny):
    graph = tiny("qwen3", 0)
    optimized, results = optimize(graph, 0)
    assert optimized == graph
    assert results == []


@pytest.mark.parametrize(("model_type", "layers"), PUBLISHED_LAYERS.items())
def test_models_lose_two_thirds_of_their_nodes(model_type, layers):
    """The node count depends on the kind and number of layers, not on their width."""
    config = CONFIGS[model_type][1] | {"num_hidden_layers": layers, "model_type": model_type}
    listed = ("layer_types", "mlp_layer_types", "compress_ratios")  # of few layers
    config = {name: value for name, value in config.items() if name not in listed}
    graph = build(config)
    nodes = [len(optimize(graph, level)[0].nodes) for level in range(MAX_LEVEL + 1)]
    assert nodes == sorted(nodes, reverse=True)
    assert nodes[3] <= 0.33 * nodes[0]


def test_results_follow_the_node_count(tiny):
    optimized, results = optimize(tiny("deepseek_v3", 1), MAX_LEVEL)
    assert tuple(result.name for result in results) == pass_names()
    for before, after in pairwise(results):
        assert before.nodes_after == after.nodes_before
    assert results[-1].nodes_after == len(optimized.nodes)


def test_a_source_reaches_share_weights(tiny, random_source):
    """With numbers at hand, an untied head equal to the embedding is stored once."""
    graph = tiny("llama", 0)
    plain = random_source(graph)

    class Tied:
        def read(self, name):
            return plain.read(name.replace("lm_head", "model.embed_tokens"))

    structural = optimize(graph, MAX_LEVEL)[0]
    shared = optimize(graph, MAX_LEVEL, Tied())[0]
    assert len(shared.weights) == len(structural.weights) - 1
    assert share_weights.run(shared.copy(), None) == 0


@pytest.mark.parametrize("level", [-1, 4, 99])
def test_unknown_levels_are_refused(level, tiny):
    with pytest.raises(RequestError, match=f"level {level}"):
        optimize(tiny("llama", 0), level)


def test_unknown_passes_are_refused(tiny):
    with pytest.raises(RequestError, match="fuse_everything"):
        optimize(tiny("llama", 0), 1, disabled=frozenset({"fuse_everything"}))
