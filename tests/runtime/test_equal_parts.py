"""Experts that have a part in common, where weights are streamed: no step waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from streamed import MIXTURE, backend, equal, memory_at, run

from deepmnn.conversion.convert import convert
from tiny_models import MLA, checkpoint_of

Tensors = dict[str, Any]
LAYERS = (1, 2, 3)
EXPERTS = MIXTURE["n_routed_experts"]


def down(layer: int, expert: int) -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"


def as_shared(tensors: Tensors, layer: int) -> None:
    shared = tensors[f"model.layers.{layer}.mlp.shared_experts.down_proj.weight"]
    tensors[down(layer, 0)] = shared.clone()


def across_layers(tensors: Tensors, layer: int) -> None:
    for expert in range(EXPERTS):
        tensors[down(layer, expert)] = tensors[down(1, expert)].clone()


def in_pairs(tensors: Tensors, layer: int) -> None:
    for expert in range(EXPERTS):
        tensors[down(layer, expert)] = tensors[down(layer, expert // 2 * 2)].clone()


def one_for_all(tensors: Tensors, layer: int) -> None:
    for expert in range(EXPERTS):
        tensors[down(layer, expert)] = tensors[down(layer, 0)].clone()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("share", [as_shared, across_layers, in_pairs, one_for_all])
def test_experts_that_share_a_matrix(share: Callable[[Tensors, int], None], tmp_path: Path) -> None:
    fields = MLA | MIXTURE | {"num_nextn_predict_layers": 0, "n_group": 1, "topk_group": 1}
    checkpoint_of("deepseek_v3", fields, tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    for layer in LAYERS:
        share(tensors, layer)
    save_file(tensors, file, {"format": "pt"})
    convert(tmp_path / "source", tmp_path / "model", quant="w8")
    want = run(backend(tmp_path / "model"))
    for part in (0.0, 0.1):
        made = backend(tmp_path / "model", memory_at(tmp_path / "model", part))
        assert equal(run(made), want), part
