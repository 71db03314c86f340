"""Stages: a graph cut by layers computes what the whole model does, and only what is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepmnn.conversion.stage import Stage, stored_from
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import optimize
from deepmnn.graph.stages import stages
from deepmnn.models import build
from parity import prompts_for
from tiny_models import CONFIGS, TinyModel, tiny_checkpoint

LEVELS = (0, 2, 3)


def made(name: str, level: int, path: Path) -> tuple[TinyModel, Graph]:
    tiny = tiny_checkpoint(name, 0, path)
    graph, _ = optimize(build(tiny.config), level)
    return tiny, graph


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_stages_in_turn_give_transformers_logits(name: str, level: int, tmp_path: Path) -> None:
    tiny, graph = made(name, level, tmp_path / "hf")
    samples = [np.array(ids, np.int32) for ids in prompts_for((7, 1, 20), 90)]
    values: dict[str, np.ndarray] = {}
    for part in stages(graph, ["logits"]):
        stage = Stage(part, stored_from(tiny), 28, tmp_path)
        values.update(stage.run(samples, {name: values[name] for name in stage.inputs}))
    want = np.concatenate([tiny.logits(sample.tolist()) for sample in samples])
    np.testing.assert_allclose(values["logits"], want, atol=2e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_is_a_stage(name: str, level: int, tmp_path: Path) -> None:
    tiny, graph = made(name, level, tmp_path)
    parts = stages(graph, ["logits"])
    assert len(parts) == tiny.config["num_hidden_layers"] + 1
    assert [node for part in parts for node in part.nodes] == graph.nodes
    assert sorted(name for part in parts for name in part.caches) == sorted(graph.caches)


def test_what_nobody_wants_is_not_computed(tmp_path: Path) -> None:
    _, graph = made("llama", 3, tmp_path)
    *_, last = stages(graph, ["hidden"])
    assert last.outputs == ["hidden"]
    assert "lm_head" not in {node.name for node in last.nodes}


def test_values_inside_a_stage_come_out_too(tmp_path: Path) -> None:
    _, graph = made("llama", 0, tmp_path)
    first, second, _ = stages(graph, ["layers.1.mlp.mul"])
    assert "layers.1.mlp.mul" in second.outputs
    assert [name for name in second.inputs if name != "positions"] == first.outputs
