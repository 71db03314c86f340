"""The widened mixture is the small one's function; caches are simulated as plain ones behave."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.memory import caches, policy
from bench.memory.widen import WideSource, Widths

import deepmnn
from deepmnn import models
from deepmnn.conversion.carry_out import carry_out
from deepmnn.conversion.plan import plan
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.quant.recipe import recipe_of
from deepmnn.source.random import RandomSource
from deepmnn.source.source import Source

CONFIG = {
    "model_type": "deepseek_v3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "max_position_embeddings": 128,
}


def random_source(folder: Path) -> RandomSource:
    file = folder / "config.json"
    file.write_text(json.dumps(CONFIG))
    shapes = tensor_shapes(models.build(CONFIG))
    return RandomSource(shapes, config=CONFIG, path=folder, config_file=file)


def logits(source: Source, out: Path) -> np.ndarray:
    carry_out(plan(source, recipe_of("fp32")), out)
    return np.asarray(deepmnn.load(out).logits(list(range(20, 50))))


def test_the_widened_model_computes_the_same(tmp_path: Path) -> None:
    source = random_source(tmp_path)
    wide = WideSource(
        source, Widths(hidden=3, neurons=5, dense_neurons=2, heads=2, ranks=4, head_dims=3)
    )
    wanted = logits(source, tmp_path / "small")
    assert wanted.std() > 0.1
    np.testing.assert_allclose(logits(wide, tmp_path / "wide"), wanted, atol=1e-4)


def test_its_shapes_are_those_of_its_config_and_no_rows_are_equal(tmp_path: Path) -> None:
    wide = WideSource(random_source(tmp_path), Widths(hidden=2, neurons=3))
    shapes = tensor_shapes(models.build(wide.config))
    assert {name: wide.shape(name) for name in wide.names()} == shapes
    for name in ("1.mlp.experts.3.up_proj", "0.mlp.down_proj"):
        name = f"model.layers.{name}.weight"
        w = wide.read(name)
        assert w.shape == shapes[name]
        assert len(np.unique(w, axis=0)) == len(w)
        np.testing.assert_array_equal(wide.read(name), w)


# ---------------------------------------------------------------- caches


def traces(tokens: int, seed: int = 0) -> policy.Traces:
    """Two rows of 2 layers with 16 experts each, a few of them chosen more often."""
    rng = np.random.default_rng(seed)
    shape = (2, policy.PROMPT + tokens, 2)
    chance = rng.dirichlet(np.full(16, 0.5)) + 1e-3
    chosen = [
        rng.choice(16, 3, replace=False, p=chance / chance.sum()) for _ in range(np.prod(shape))
    ]
    rows = np.array(chosen).reshape(*shape, 3) + np.array([0, 16])[None, None, :, None]
    return policy.Traces(rows, 32, rows[..., :1])


@pytest.mark.parametrize("room", [8, 20])
def test_lru_is_the_plain_algorithm(room: int) -> None:
    found = traces(60)
    held: OrderedDict[int, None] = OrderedDict()
    hits = asked = 0
    for number, row in enumerate(found.rows):
        for step in row[policy.PROMPT :].reshape(-1, 3):
            there = [int(expert) in held for expert in step]
            hits, asked = hits + number * sum(there), asked + number * len(there)
            for expert in step:
                held[int(expert)] = None
                held.move_to_end(int(expert))
            while len(held) > room:
                held.popitem(last=False)
    cache = caches.Cache(np.zeros((1, 32), bool), room, admit=True)
    rate = policy.hit_rate(found, caches.Policy(32), cache, "unseen")
    # Experts of one step are equally recent: which of them goes first is not said.
    assert rate == pytest.approx(hits / asked, abs=0.02)


@pytest.mark.parametrize("by_layer", [False, True])
def test_nothing_beats_knowing_the_future(by_layer: bool) -> None:
    found = traces(40)
    for share in (0.2, 0.5):
        bound = policy.best_rate(found, found.cache(share, by_layer, False))
        for make in (caches.Policy, caches.Frequency, caches.Second):
            for prompt in ("scan", "unseen", "tokens"):
                cache = found.cache(share, by_layer, False)
                assert policy.hit_rate(found, make(32), cache, prompt) <= bound
    assert policy.best_rate(found, found.cache(1.0, by_layer, False)) == 1.0
