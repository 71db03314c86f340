"""What a source keeps stays kept, from the plan to the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.conversion.plan import Plan, plan
from deepmnn.conversion.write import write
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.formats import F32, named
from deepmnn.graph.ir import Weight
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import Constant
from deepmnn.quant.recipe import RECIPES
from deepmnn.quant.store import store, store_codes, stored_values
from deepmnn.source.open import open_source
from kept_source import KeptSource, kept_codes
from parity import Runner
from storage import KEPT_NAMES
from tiny_models import TinyModel, tiny_checkpoint

MIXED = {"*k_proj*": "q6_k", "*embed*": "q8_0", "*experts.1.*": "q5_k", "*": "q4_k"}


def tiny(path: Path, model_type: str = "llama") -> TinyModel:
    return tiny_checkpoint(model_type, 0, path)


def planned(path: Path, formats: dict[str, str], recipe: str = "w8", level: int = 3) -> Plan:
    return plan(KeptSource(open_source(path), formats), RECIPES[recipe], level)


@pytest.mark.parametrize("format", KEPT_NAMES)
def test_rounding_of_these_tests_is_near(format: str) -> None:
    w = np.random.default_rng(0).standard_normal((20, 600)).astype(np.float32)
    error = np.linalg.norm(kept_codes(w, format).values()[:, :600] - w) / np.linalg.norm(w)
    assert error < {8: 0.02, 6: 0.05, 5: 0.08, 4: 0.16}[named(format).bits]


def test_a_plan_keeps_what_has_no_more_bits_than_the_recipe_asks_for(tmp_path: Path) -> None:
    tiny(tmp_path / "hf")

    def formats(kept: str, recipe: str) -> set[str]:
        made = planned(tmp_path / "hf", {"*": kept}, recipe)
        return {weight.format for weight in made.weights} - {"vector", "w8"}

    assert formats("q8_0", "w8") == {"q8_0"}
    assert formats("q4_0", "w8") == {"q4_0"}
    assert formats("q4_0", "w4") == {"q4_0"}
    assert formats("q5_0", "w4") == {"w4", "q5_0"}  # the embedding is w8, and so kept
    assert formats("q4_0", "bf16") == {"bf16"}
    assert formats("q4_0", "fp32") == {"f32"}


def test_only_weights_of_one_format_are_fused(tmp_path: Path) -> None:
    tiny(tmp_path / "hf")
    made = planned(tmp_path / "hf", MIXED)
    for weight in made.weights:
        names = [tensor.name for tensor in tensors(weight.expr)]
        if named(weight.format).is_kept:
            assert len({MIXED["*k_proj*"] if "k_proj" in name else "" for name in names}) == 1
    assert {weight.format for weight in made.weights} >= {"q6_k", "q8_0", "q4_k"}


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "deepseek_v2", "deepseek_v3"])
def test_numbers_and_logits_are_the_source_s(tmp_path: Path, model_type: str, level: int) -> None:
    """Stored numbers equal the source's bit for bit; logits differ by what activations lose."""
    model = tiny(tmp_path / "hf", model_type)
    made = planned(tmp_path / "hf", MIXED, "w8", level)
    write(made, tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out")
    kept = 0
    for weight in made.weights:
        if named(weight.format).is_kept:
            stored = stored_values(weight, artifact.tensor(weight.name))
            np.testing.assert_array_equal(stored, weight.expr.read(made.source))
            kept += 1
    assert kept > 3
    exact = logits(ReferenceBackend(made.graph, lambda name: values(artifact, name)), model)
    found = logits(CpuBackend(tmp_path / "out", threads=1), model)
    errors = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(errors) < 0.03  # a token that is near a border goes to other experts


def values(artifact: Artifact, name: str) -> F32:
    return stored_values(artifact.graph().weights[name], artifact.tensor(name))


def logits(backend: object, model: TinyModel) -> F32:
    ids = np.random.default_rng(0).integers(0, model.config["vocab_size"], 19).tolist()
    runner = Runner(backend)  # type: ignore[arg-type]
    first = runner.step({0: ids[:16]})[0]
    return np.concatenate([first, *(runner.step({0: [one]})[0] for one in ids[16:])])


def test_codes_are_moved_and_never_rounded_again(tmp_path: Path) -> None:
    tiny(tmp_path / "hf")
    made = planned(tmp_path / "hf", {"*": "q4_1"})
    write(made, tmp_path / "out")
    source = made.source
    assert isinstance(source, KeptSource)
    names = {t.name for w in made.weights if w.format == "q4_1" for t in tensors(w.expr)}
    assert set(source.taken) == names


def test_kept_formats_are_nothing_that_numbers_are_rounded_to() -> None:
    weight = Weight("w", Constant((4, 64)), format="q4_0")
    with pytest.raises(RequestError, match="keeps the codes"):
        store(weight, np.zeros((4, 64), np.float32))


def test_codes_that_do_not_fit_are_refused() -> None:
    weight = Weight("w", Constant((4, 64)), format="q4_k")
    codes = kept_codes(np.ones((4, 64), np.float32), "q4_k")
    assert store_codes(weight, codes).nbytes == weight.nbytes
    codes.codes[2, 3] = 16
    with pytest.raises(CheckpointError, match="codes of 16"):
        store_codes(weight, codes)
    codes.codes[2, 3] = 15
    codes.factors[1, 0] = np.inf
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        store_codes(weight, codes)
    with pytest.raises(CheckpointError, match="codes are"):
        store_codes(Weight("w", Constant((4, 65)), format="q4_k"), codes)
