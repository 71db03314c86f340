"""What noise in a part does to predictions, beside transformers with the same noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmnn.backends.base import I32
from deepmnn.conversion import sensitivity
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.forward import batches
from deepmnn.conversion.sensitivity import NOISE, Noisy, Part, parts, sensitivities
from deepmnn.graph.tensors import tensors
from deepmnn.models import build
from deepmnn.quant.divergence import divergence
from deepmnn.quant.recipe import ROLES
from parity import prompts_for
from tiny_models import CONFIGS, TinyModel, tiny_checkpoint


def samples_of(*lengths: int) -> list[I32]:
    return [np.array(ids, np.int32) for ids in prompts_for(lengths, 90)]


def measured(tiny: TinyModel, part: Part, samples: list[I32]) -> float:
    """The mean divergence with noise in a part, by transformers."""
    clean = [tiny.logits(sample.tolist()) for sample in samples]
    noisy = Noisy(tiny, part.tensors, NOISE)
    state = tiny.model.state_dict()
    exact = {name: state[name].clone() for name in part.tensors if name in state}
    assert exact.keys() == part.tensors
    for name in exact:
        state[name].copy_(torch.from_numpy(np.array(noisy.read(name))))
    found = [
        divergence(want, tiny.logits(sample.tolist()))[:: sensitivity._STRIDE]
        for want, sample in zip(clean, samples, strict=True)
    ]
    for name, value in exact.items():
        state[name].copy_(value)
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("name", ["llama", "qwen2", "deepseek_v2", "deepseek_v3"])
def test_sensitivities_are_what_noise_does_in_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "DEFAULT", "fp32")
    tiny = tiny_checkpoint(name, 0, tmp_path / "hf")
    samples = samples_of(21, 40)
    (tmp_path / "state").mkdir()
    found = sensitivities(plan_conversion(tiny.path, "w4"), samples, tmp_path / "state")
    assert list(found) == parts(build(tiny.config))
    checked = 0
    for part, value in found.items():
        if part.role == "expert":
            continue
        want = measured(tiny, part, samples) / NOISE**2
        control = min(found.values())
        assert value == pytest.approx(want, rel=0.1, abs=2 * control), part.patterns
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize("name", CONFIGS)
def test_every_matrix_that_a_recipe_chooses_for_is_in_one_part(name: str, tmp_path: Path) -> None:
    tiny = tiny_checkpoint(name, 0, tmp_path / "hf")
    graph = build(tiny.config)
    found = parts(graph)
    names = [tensor for part in found for tensor in part.tensors]
    assert len(names) == len(set(names))
    read = {weight for node in graph.nodes for weight in node.weights}
    wanted = {
        tensor.name
        for weight in graph.weights.values()
        if weight.role in ROLES and len(weight.shape) == 2 and weight.name in read
        for tensor in tensors(weight.expr)
    }
    assert set(names) == wanted


def test_a_recipe_reaches_each_part_alone(tmp_path: Path) -> None:
    from fnmatch import fnmatchcase

    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    found = parts(build(tiny.config))
    names = [name for part in found for name in part.tensors]
    for part in found:
        matched = {n for n in names if any(fnmatchcase(n, p) for p in part.patterns)}
        assert matched == part.tensors
    experts = [part for part in found if part.role == "expert"]
    assert {len(part.patterns) for part in experts} == {1, 2}, "down; gate with up"


def test_noise_has_the_size_of_its_panel() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 600), np.float32)
    w[:, 256:512] *= 100

    class Source:
        def read(self, name: str) -> np.ndarray:
            return w

    noisy = Noisy(Source(), frozenset({"a"}), 0.1)
    assert np.array_equal(noisy.read("b"), w)
    error = noisy.read("a") - w
    assert np.array_equal(noisy.read("a") - w, error), "the same again"
    for start in (0, 256, 512):
        panel = slice(start, start + 256)
        ratio = np.sqrt(np.square(error[:, panel]).mean() / np.square(w[:, panel]).mean())
        assert ratio == pytest.approx(0.1, rel=0.05)


def test_samples_for_a_step() -> None:
    samples = samples_of(2000, 40, 10, 3000, 1)
    assert [[len(s) for s in batch] for batch in batches(samples)] == [
        [2000, 40],
        [10],
        [3000],
        [1],
    ]
    assert list(batches([])) == []
    assert math.isclose(sum(len(s) for b in batches(samples) for s in b), 5051)
