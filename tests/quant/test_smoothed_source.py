"""Smoothed models: transformers' logits, and columns of more equal size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepmnn
from deepmnn.conversion.activations import column_sizes
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.write import write
from deepmnn.errors import RequestError
from deepmnn.quant.recipe import recipe_of
from deepmnn.quant.smoothed_source import SmoothedSource
from parity import prompts_for
from tiny_models import CONFIGS, TinyModel, checkpoint_of

IDS = [3, 5, 90, 17, 41, 8, 8, 60]


def sizes_of(made: Plan, folder: Path) -> dict[str, np.ndarray]:
    samples = [np.array(ids, np.int32) for ids in prompts_for((90, 80, 70, 60), 90)]
    folder.mkdir()
    return column_sizes(made, ".down_proj.weight", samples, folder)


@pytest.mark.parametrize(
    ("name", "index"),
    [("llama", 0), ("llama", 2), ("deepseek", 1), ("deepseek_v2", 0), ("deepseek_v3", 0)],
)
def test_the_logits_are_those_of_transformers(name: str, index: int, tmp_path: Path) -> None:
    """With biases, experts and shared experts; of each expert by itself."""
    tiny, made = model(name, index, tmp_path)
    sizes = sizes_of(made, tmp_path / "state")
    assert sizes
    smoothed = plan(SmoothedSource(made.source, sizes), recipe_of("fp32"))
    for changed in sizes:
        assert not np.allclose(smoothed.source.read(changed), tiny.read(changed))
    found = deepmnn.load(write(smoothed, tmp_path / "model")).logits(IDS)
    want = tiny.logits(IDS)
    np.testing.assert_allclose(found, want, atol=2e-5 * float(np.abs(want).max()))


def model(name: str, index: int, folder: Path) -> tuple[TinyModel, Plan]:
    tiny = checkpoint_of(name, CONFIGS[name][index], folder / "hf")
    return tiny, plan_conversion(tiny.path, "fp32")


def test_columns_come_nearer_to_each_other(tmp_path: Path) -> None:
    _, made = model("llama", 0, tmp_path)
    before = sizes_of(made, tmp_path / "a")
    smoothed = plan(SmoothedSource(made.source, before), recipe_of("fp32"))
    after = sizes_of(smoothed, tmp_path / "b")
    for name in before:
        np.testing.assert_allclose(
            np.log(after[name]).std(), np.log(before[name]).std() / 2, rtol=0.05
        )


def test_columns_that_are_always_zero(tmp_path: Path) -> None:
    tiny, made = model("llama", 0, tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    w: Any = tiny.read(name)
    sizes = np.zeros(w.shape[1], np.float32)
    np.testing.assert_array_equal(SmoothedSource(made.source, {name: sizes}).read(name), w)
    sizes[:2] = 1e-30, 1e30
    found = SmoothedSource(made.source, {name: sizes}).read(name)
    np.testing.assert_allclose(found[:, :2], w[:, :2] * np.float32([1 / 32, 32]), rtol=1e-6)
    np.testing.assert_array_equal(found[:, 2:], w[:, 2:])


def test_activations_that_are_no_numbers(tmp_path: Path) -> None:
    _, made = model("llama", 0, tmp_path)
    read = made.source.read
    made.source.read = lambda name: read(name) * np.float32(1e30 if "norm" in name else 1)  # type: ignore[method-assign]
    with pytest.raises(RequestError, match="NaN or infinity"):
        sizes_of(made, tmp_path / "state")
