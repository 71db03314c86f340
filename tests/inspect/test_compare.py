"""Two runs of a model: sound ones raise no alarm, planted faults are found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from deepmnn.artifact.manifest import MANIFEST
from deepmnn.conversion.convert import convert
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.exporters.mnn.export import export
from deepmnn.graph.passes import fuse_swiglu
from deepmnn.graph.weights import Interleave
from deepmnn.inspect.bisect.bisect import bisect
from deepmnn.inspect.compare.comparison import Comparison, compare
from deepmnn.inspect.compare.findings import Finding
from deepmnn.inspect.samples import read_samples
from deepmnn.inspect.sides.opened import opened
from deepmnn.inspect.sides.options import SideOptions
from exporters.folders import reseal
from planted import (
    GQA,
    SMALL_EPS,
    V2,
    V3,
    YARN,
    Plant,
    biased_weights,
    changed,
    no_softmax_mscale,
    other_base,
    shaken,
    small_eps,
    source_of,
    wrong_pairs,
)
from tiny_models import LOADED, tiny_checkpoint

TORCH, NUMPY = SideOptions(backend="torch"), SideOptions(backend="reference")


def compared(
    model: Path,
    reference: Path,
    ours: SideOptions | None = None,
    theirs: SideOptions = TORCH,
    **how: Any,
) -> Comparison:
    with ExitStack() as stack:
        a = stack.enter_context(opened(str(model), ours))
        b = stack.enter_context(opened(str(reference), theirs))
        samples = read_samples(None, None, a.vocab_size, 128, 60)
        return compare(a, b, samples, effects=False)


def with_slow(cases: list[Any], fast: Callable[[Any], bool]) -> list[Any]:
    """Cases as parameters, all but the fast ones marked."""
    return [case if fast(case) else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


SOUND = [(*case, quant) for case in LOADED for quant in ("fp32", "w8", "w3")]


@pytest.mark.parametrize(
    ("model_type", "index", "quant"),
    with_slow(SOUND, lambda case: case[2] == "fp32" or case[1:] == (0, "w8")),
)
def test_a_sound_model_raises_no_alarm(
    tmp_path: Path, model_type: str, index: int, quant: str
) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "model", quant)
    found = compared(tmp_path / "model", tmp_path / "source")
    assert not found.findings
    assert found.values[-1].name == "logits"
    assert found.divergence is not None
    if quant == "fp32":
        assert found.divergence.mean < 1e-8
    assert not found.hidden


@pytest.mark.parametrize("level", [2, 3])
def test_effects_are_beside_the_reference_as_it_runs(tmp_path: Path, level: int) -> None:
    """Not beside its numbers in float32, from which both are far."""
    source = source_of(tmp_path / "source", V3)
    convert(source, tmp_path / "model", "w3", optimize_level=level)
    with ExitStack() as stack:
        name = str(tmp_path / "model")
        a = stack.enter_context(opened(name, SideOptions(isa="scalar")))
        b = stack.enter_context(opened(name))
        samples = read_samples(None, None, a.vocab_size, 128, 60)
        found = compare(a, b, samples)
        assert found.divergence is not None
        assert len(found.effects) == 4
        assert sum(effect.alone for effect in found.effects) < 1e-3
        c = stack.enter_context(opened(str(source), TORCH))
        found = compare(a, c, samples)
        assert found.divergence is not None
        added = sum(effect.added for effect in found.effects)
        assert added == pytest.approx(found.divergence.mean, rel=1e-3)


# --------------------------------------------------------------- planted faults

BUILDERS: list[tuple[str, Plant, dict[str, Any], str, str]] = [
    (V3, wrong_pairs, {}, "self_attn.q_rope", "interleaved"),
    (V2, wrong_pairs, {}, "self_attn.q_rope", "interleaved"),
    (V3, no_softmax_mscale, {"rope_parameters": YARN}, "self_attn.attention", "scale"),
    (V2, no_softmax_mscale, {"rope_parameters": YARN}, "self_attn.attention", "scale"),
    (V3, other_base, {}, "self_attn.q_rope", "inv_freq"),
    (GQA, other_base, {}, "self_attn.q_rope", "inv_freq"),
    ("llama", other_base, {}, "self_attn.q_rope", "inv_freq"),
    (V3, small_eps, SMALL_EPS, "layers.0.input_layernorm", "eps"),
    (GQA, small_eps, SMALL_EPS, "layers.0.input_layernorm", "eps"),
    (V2, small_eps, SMALL_EPS, "layers.0.input_layernorm", "eps"),
    (V3, biased_weights, {}, "mlp.gate.scale", ""),
]


def first(found: Comparison, kind: str) -> Finding:
    return next(each for each in found.findings if each.kind == kind)


@pytest.mark.parametrize(
    ("model_type", "plant", "fields", "place", "attribute", "quant"),
    with_slow(
        [(*case, quant) for case in BUILDERS for quant in ("fp32", "w4")],
        lambda case: (case[0] == V2) == (case[-1] == "w4"),
    ),
)
def test_a_fault_of_the_model_file_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    plant: Plant,
    fields: dict[str, Any],
    place: str,
    attribute: str,
    quant: str,
) -> None:
    """The place, although it is inside a fused node; and where only the stored model is wrong, the
    attribute.
    """
    source = source_of(tmp_path / "source", model_type, **fields)
    with monkeypatch.context() as patch:
        plant(patch)
        convert(source, tmp_path / "model", quant)
        found = compared(tmp_path / "model", source)
        assert place in first(found, "value").place
    if attribute:
        found = compared(tmp_path / "model", source)
        assert attribute in first(found, "attribute").text


def test_a_wrong_pass_is_told_from_a_wrong_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path / "source", V3)

    def swapped(pair: tuple[Any, ...]) -> Interleave:
        return Interleave(pair[::-1])

    monkeypatch.setattr(fuse_swiglu, "Interleave", swapped)
    convert(source, tmp_path / "model", "fp32")
    finding = first(compared(tmp_path / "model", source), "value")
    assert finding.place == "layers.0.mlp.mul"
    assert "fuse_swiglu" in finding.text


def test_a_damaged_block_of_rows_is_named(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", GQA, hidden_size=72, intermediate_size=96)
    name = "model.layers.1.mlp.down_proj.weight"
    damaged = changed(source, tmp_path / "damaged", {name: shaken})
    for quant in ("w4", "w8", "fp32"):
        convert(damaged, tmp_path / quant, quant)
        finding = first(compared(tmp_path / quant, source), "weight")
        assert finding.place == name
        assert "rows 16 to 31" in finding.text


def test_one_row_is_enough(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", GQA, hidden_size=72, intermediate_size=96)
    name = "model.layers.1.mlp.down_proj.weight"

    def without_a_row(w: np.ndarray) -> np.ndarray:
        w = w.copy()
        w[35] = 0
        return w

    damaged = changed(source, tmp_path / "damaged", {name: without_a_row})
    convert(damaged, tmp_path / "model", "w4")
    finding = first(compared(tmp_path / "model", source), "weight")
    assert finding.place == name
    assert "rows 32 to 47" in finding.text


def test_a_program_that_is_not_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs program.bin, the comparison the graph."""
    source = source_of(tmp_path / "source", V3)
    convert(source, tmp_path / "model", "fp32")
    with monkeypatch.context() as patch:
        other_base(patch)
        convert(source, tmp_path / "other", "fp32")
    shutil.copy(tmp_path / "other/program.bin", tmp_path / "model")
    reseal(tmp_path / "model" / MANIFEST)
    finding = first(compared(tmp_path / "model", source), "program")
    assert "inv_freq" in finding.text
    with opened(str(tmp_path / "model")) as a, opened(str(source), NUMPY) as b:
        samples = read_samples(None, None, a.vocab_size, 128, 60)
        with pytest.raises(ArtifactError, match="inv_freq"):
            bisect(a, b, samples, 0.1)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "deepseek"])
def test_an_experts_swapped_matrices_are_named(tmp_path: Path, model_type: str) -> None:
    index = 1 if model_type == "deepseek" else 0
    tiny_checkpoint(model_type, index, tmp_path / "source")
    gate, up = (f"model.layers.1.mlp.experts.2.{part}_proj.weight" for part in ("gate", "up"))
    tensors = load_file(tmp_path / "source/model.safetensors")
    other = {gate: lambda _: tensors[up], up: lambda _: tensors[gate]}
    convert(changed(tmp_path / "source", tmp_path / "damaged", other), tmp_path / "model", "w4")
    found = compared(tmp_path / "model", tmp_path / "source")
    finding = first(found, "weight")
    assert finding.place == gate
    assert finding.text.endswith(f"it is the reference's {up}")


# ------------------------------------------------------------------------- MNN

ON_MNN = [case for case in BUILDERS if case[1] is not small_eps]
"""MNN's embedding is float16, whose roundings are larger than what an eps does."""


@pytest.mark.parametrize(
    ("model_type", "plant", "fields", "place", "attribute"),
    with_slow(ON_MNN, lambda case: case[1] in (wrong_pairs, biased_weights)),
)
def test_a_fault_of_the_model_file_is_named_on_mnn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    plant: Plant,
    fields: dict[str, Any],
    place: str,
    attribute: str,
) -> None:
    source = source_of(tmp_path / "source", model_type, **fields)
    with monkeypatch.context() as patch:
        plant(patch)
        convert(source, tmp_path / "model", "fp32")
        export(tmp_path / "model", tmp_path / "folder")
    finding = first(compared(tmp_path / "folder", source), "value")
    assert place.removesuffix("q_rope") in finding.place


@pytest.mark.parametrize("model_type", [V2, V3])
def test_an_expert_is_named_on_mnn(tmp_path: Path, model_type: str) -> None:
    source = source_of(tmp_path / "source", model_type)
    convert(source, tmp_path / "sound", "fp32")
    export(tmp_path / "sound", tmp_path / "sound-folder")
    assert not compared(tmp_path / "sound-folder", source).findings
    tensors = load_file(source / "model.safetensors")
    gate, up = (f"model.layers.1.mlp.experts.2.{part}_proj.weight" for part in ("gate", "up"))
    other = {gate: lambda _: tensors[up], up: lambda _: tensors[gate]}
    convert(changed(source, tmp_path / "damaged", other), tmp_path / "model", "fp32")
    export(tmp_path / "model", tmp_path / "folder")
    finding = first(compared(tmp_path / "folder", source), "value")
    assert finding.place == "layers.1.mlp.experts.combine"
    assert "expert 2 " in finding.text


# ------------------------------------------------------------------- wrong pairs


def test_other_models_are_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path / "source", GQA)
    others = {
        "vocabulary": ({"vocab_size": 101}, GQA),
        "layers": ({"num_hidden_layers": 2}, GQA),
        "numbers": ({"intermediate_size": 64}, GQA),
        "architecture|numbers": ({}, V3),
        "weight": ({}, "llama"),
    }
    for words, (fields, model_type) in others.items():
        other = source_of(tmp_path / words.replace("|", "-"), model_type, **fields)
        with pytest.raises(RequestError, match=words):
            compared(source, other, NUMPY, NUMPY)
