"""What a comparison records of values, and the few figures and words it is summed up by."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepmnn.conversion.convert import convert
from deepmnn.conversion.report.charts import Bar, signed_groups
from deepmnn.inspect.compare.comparison import Comparison, compare
from deepmnn.inspect.compare.difference import difference, percent
from deepmnn.inspect.compare.effects import Calm, Effect
from deepmnn.inspect.compare.findings import Finding
from deepmnn.inspect.compare.sketch import BINS, sketch
from deepmnn.inspect.compare.summary import alike, effect_words
from deepmnn.inspect.samples import read_samples
from deepmnn.inspect.sides.opened import opened
from deepmnn.inspect.sides.options import SideOptions
from deepmnn.quant.divergence import Divergence
from tiny_models import CONFIGS, checkpoint_of, tiny_checkpoint

NUMPY = SideOptions(backend="reference")


def test_a_sketch_is_numpys_histogram() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(2, 1, (50, 40)).astype(np.float32)
    found = wanted + rng.normal(0, 0.1, wanted.shape).astype(np.float32)
    made = sketch(found, wanted)
    assert made is not None
    inner, _ = np.histogram(wanted, BINS, (made.low, made.high))
    assert made.reference[1:-1] == tuple(inner[1:-1])  # what is beyond is in the first and the last
    assert sum(made.model) == sum(made.reference) == sum(made.difference) == wanted.size
    assert made.low <= 0.0 <= made.high
    assert made.reference_ends == (wanted.min(), wanted.max())


def test_a_sketch_of_a_large_value_sees_all_columns_and_of_none_is_none() -> None:
    wanted = np.zeros((1000, 256), np.float32)
    wanted[:, 77] = 1.0
    made = sketch(wanted, wanted)
    assert made is not None
    assert sum(made.reference) < wanted.size
    assert made.reference_ends == (0.0, 1.0)
    assert sketch(wanted * np.nan, wanted) is None
    assert sketch(wanted.astype(np.int32), wanted.astype(np.int32)) is None


def test_masked_scores_are_compared_by_their_masks() -> None:
    wanted = np.arange(24, dtype=np.float32).reshape(4, 6) + 1
    wanted[:, :3] = -np.inf
    positions = np.arange(4)
    assert difference(wanted, wanted, positions).error == 0
    assert math.isclose(difference(wanted * 1.5, wanted, positions).error, 0.5)
    found = wanted.copy()
    found[2, 1] = 5.0
    other = difference(found, wanted, positions)
    assert (other.error, other.row, other.column) == (1 / 24, 2, 1)
    found[2, 1] = np.nan
    assert difference(found, wanted, positions).error == np.inf


@pytest.mark.parametrize("index", range(2))
def test_the_same_model_by_numpy_raises_no_alarm(tmp_path: Path, index: int) -> None:
    """Values that PyTorch does not tell, such as masked scores, are compared there."""
    tiny_checkpoint("deepseek_v3", index, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "model", "w8", calibration=None)
    found = compared(tmp_path / "model", tmp_path / "model", None, 40)
    assert not found.findings
    assert not found.hidden


def compared(model: Path, reference: Path, options: SideOptions | None, tokens: int) -> Comparison:
    with opened(str(model), options) as a, opened(str(reference), NUMPY) as b:
        return compare(a, b, read_samples(None, None, a.vocab_size, 128, tokens))


def test_the_effect_of_one_changed_layer_is_the_whole(tmp_path: Path) -> None:
    checkpoint_of("llama", CONFIGS["llama"][0] | {"num_hidden_layers": 3}, tmp_path / "source")
    shutil.copytree(tmp_path / "source", tmp_path / "other")
    tensors = load_file(tmp_path / "source/model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.1
    save_file(tensors, tmp_path / "other/model.safetensors")
    exact = SideOptions(quant="fp32", optimize_level=3)
    found = compared(tmp_path / "other", tmp_path / "source", exact, 40)
    assert found.divergence is not None
    whole = found.divergence.mean
    assert whole > 1e-6
    for effect in found.effects:
        wanted = whole if effect.layer == 1 else 0.0
        assert math.isclose(effect.alone, wanted, rel_tol=1e-2, abs_tol=1e-2 * whole)
        assert math.isclose(effect.added, wanted, rel_tol=1e-2, abs_tol=1e-2 * whole)
    assert found.calm is not None
    assert math.isclose(found.calm.alone, found.calm.whole, rel_tol=1e-2)


@pytest.mark.parametrize(
    ("alone", "whole", "calm", "words"),
    [
        (0.09, 0.1, (0.01, 0.01), "They add up to the whole"),
        (0.2, 0.1, (0.01, 0.01), "but for a few tokens"),
        (0.2, 0.1, (0.02, 0.01), "less harm than alone"),
        (0.02, 0.1, (0.001, 0.01), "amplify"),
        (9.0, 2.0, (0.9, 0.1), "too far off"),
        (1e-9, 1e-9, (0.0, 0.0), "the same but for rounding"),
    ],
)
def test_the_sum_of_effects_is_explained(
    alone: float, whole: float, calm: tuple[float, float], words: str
) -> None:
    divergence = Divergence(10, whole, 0.0, whole, whole, whole, whole, 1.0)
    effects = (Effect(0, alone * 0.75, whole), Effect(1, alone * 0.25, 0.0))
    found = Comparison("a", "b", 2, 10, 1, (), (), {}, (), divergence, effects, Calm(*calm), (), ())
    said = " ".join(effect_words(found))
    assert words in said
    assert ("Layer 0 does most, 75 % of the sum." in said) == (alone > 1e-6)


def test_findings_of_several_layers_are_told_once() -> None:
    found = [
        Finding("attribute", f"layers.{layer}.self_attn.attention", 0, 0, "scale is 2")
        for layer in range(3)
    ]
    found.append(Finding("attribute", "layers.1.mlp.mul", 0, 0, "scale is 2"))
    assert [words for _, words in alike(found)] == [
        "layers.0.self_attn.attention and in 2 more layers",
        "layers.1.mlp.mul",
    ]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.032, "3.2 %"), (0.5, "50 %"), (4e-7, "4e-05 %"), (0, "0 %"), (12.5, "1,250 %")],
)
def test_errors_are_shown_in_two_digits(share: float, shown: str) -> None:
    assert percent(share) == shown
    assert percent(math.inf) == "infinite"
    assert percent(math.nan) == "no number"


def test_bars_below_zero_hang_down() -> None:
    groups = [[Bar("c0", 2.0, "up"), Bar("c1", -1.0, "down")], [Bar("c0", math.nan, "none")]]
    drawn = signed_groups(groups, 2, "effects", str)
    bars = [part.split("/rect")[0] for part in drawn.split("<rect")[1:]]
    assert len(bars) == 2
    top, height = (
        [float(bar.split(f' {key}="')[1].split('"')[0]) for bar in bars] for key in ("y", "height")
    )
    assert math.isclose(top[0] + height[0], top[1], abs_tol=0.2)
    assert math.isclose(height[0], 2 * height[1], abs_tol=0.2)
