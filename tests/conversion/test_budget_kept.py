"""Budgets for a checkpoint that is quantised already: its codes are one of the choices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.api.loading import load
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.budget import Budget
from deepmnn.conversion.calibration_set import CalibrationSet
from deepmnn.conversion.carry_out import Converted, carry_out
from deepmnn.conversion.held_out import HeldOut
from deepmnn.conversion.plan import plan
from deepmnn.errors import RequestError
from deepmnn.formats import named
from deepmnn.quant.divergence import Rows
from deepmnn.quant.recipe import RECIPES
from deepmnn.quant.recipe_file import read_recipe
from deepmnn.quant.store import stored_values
from deepmnn.source.open import open_source
from kept_source import KeptSource
from tiny_models import CONFIGS, checkpoint_of

TEXT = "\n\n".join(["Rivers carry sand, and sand makes stone. " * 12] * 24)
Q4, MIXED = {"*": "q4_0"}, {"*v_proj*": "q6_k", "*down_proj*": "q6_k", "*": "q4_k"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with panels of whole rows, and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("kept")
    sizes = {"vocab_size": 271, "hidden_size": 256, "intermediate_size": 512, "head_dim": 32}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": False}
    tiny = checkpoint_of("llama", CONFIGS["llama"][0] | sizes | heads, folder / "hf")
    write_tokenizer(tiny.path)
    (folder / "text.txt").write_text(TEXT)
    return tiny.path


def texts(checkpoint: Path) -> CalibrationSet:
    return CalibrationSet(checkpoint.parent / "text.txt", 20)


def fitted(checkpoint: Path, kept: dict[str, str], out: Path, budget: Budget) -> Converted:
    made = plan(KeptSource(open_source(checkpoint), kept), RECIPES["w8"])
    return carry_out(made, out, texts(checkpoint), budget)


def formats(out: Path) -> set[str]:
    return {w.format for w in Artifact.open(out).graph().weights.values()} - {"vector"}


def test_a_budget_that_has_room_for_them_keeps_all_codes(checkpoint: Path, tmp_path: Path) -> None:
    made = fitted(checkpoint, Q4, tmp_path / "out", Budget(bits_per_weight=5.0))
    assert formats(tmp_path / "out") == {"q4_0"}
    assert made.plan.nbytes == plan(made.plan.source, RECIPES["w8"]).nbytes
    assert made.search is not None
    assert made.search.chosen.nbytes == made.plan.nbytes
    assert max(made.search.parts.values()) == 0
    artifact = Artifact.open(tmp_path / "out")
    for weight in made.plan.weights:
        if named(weight.format).is_kept:
            found = stored_values(weight, artifact.tensor(weight.name))
            np.testing.assert_array_equal(found, weight.expr.read(made.plan.source))


def test_a_narrower_budget_rounds_only_some(checkpoint: Path, tmp_path: Path) -> None:
    """Of a file in Q4_K and Q6_K: the bytes are kept to, and the recipe replays the choice."""
    source = KeptSource(open_source(checkpoint), MIXED)
    whole, least = (plan(source, RECIPES[name]).nbytes for name in ("w8", "w3"))
    most = (3 * whole + least) // 4
    made = fitted(checkpoint, MIXED, tmp_path / "out", Budget(max_bytes=most))
    assert 0.9 * most < made.plan.nbytes <= most
    found = formats(tmp_path / "out")
    assert "q4_k" in found
    assert any(named(name).is_quantized for name in found)
    assert made.search is not None
    assert abs(made.search.points[-1].nbytes - whole) < 0.01 * whole  # what keeps everything
    again = plan(source, read_recipe(str(tmp_path / "out" / "recipe.yaml")))
    assert [w.format for w in again.weights] == [w.format for w in made.plan.weights]


def test_bytes_that_cannot_be_met_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"at least .* all matrices in w3"):
        fitted(checkpoint, Q4, tmp_path / "out", Budget(bits_per_weight=1.0))


def test_held_out_text_judges_the_codes_that_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    """Not what a recipe of as many bits would make of them; as the converted model predicts."""
    source = KeptSource(open_source(checkpoint), Q4)
    made = plan(source, RECIPES["w4"])
    assert {w.format for w in made.weights} == {"vector", "q4_0"}
    sample = np.random.default_rng(0).integers(0, 271, 200).astype(np.int32)
    (tmp_path / "state").mkdir()
    found = HeldOut(made, [sample], tmp_path / "state").divergence(made)
    logits = []
    for recipe, name in (("fp32", "exact"), ("w4", "kept")):
        carry_out(plan(source, RECIPES[recipe]), tmp_path / name)
        logits.append(Rows(load(tmp_path / name).logits(sample.tolist())))
    divergence = logits[0].divergence(logits[1])
    assert found.mean == pytest.approx(divergence.mean(), rel=0.05)
