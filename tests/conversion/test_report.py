"""The facts of a report: against the plan, the stored bytes, and what torch computes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deepmnn
from byte_tokenizer import write_tokenizer
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion import calibrate as calibrating
from deepmnn.conversion.calibrate import Tap
from deepmnn.conversion.carry_out import carry_out
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.conversion.report.facts import ExpertFacts, Judged, Point, Search, layer_of
from deepmnn.conversion.report.observed import Observed
from deepmnn.conversion.report.recorder import HTML, JSON, Recorder
from deepmnn.errors import StorageError
from deepmnn.formats import named
from deepmnn.graph.tensors import tensors
from deepmnn.quant.layout import unpack_codes
from deepmnn.quant.recipe import Recipe, Rule
from deepmnn.quant.store import stored_values
from tiny_models import CONFIGS, TinyModel, checkpoint_of, tiny_checkpoint

TEXT = "\n\n".join(f"{n}. Rivers carry sand, and sand makes stone. " * 12 for n in range(9))
MIXED = Recipe(
    "mixed",
    (
        Rule("model.layers.0.*", "w3"),
        Rule("role:expert", "w5"),
        Rule("role:latent", "w8"),
        Rule("role:embedding", "bf16"),
        Rule("*", "w4"),
    ),
)


def facts_of(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / JSON).read_text())
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    """A mixture of experts with a tokenizer of bytes."""
    config = CONFIGS["deepseek_v3"][0] | {"vocab_size": 271}
    made = checkpoint_of("deepseek_v3", config, tmp_path / "hf")
    write_tokenizer(made.path)
    (tmp_path / "text.txt").write_text(TEXT)
    return made


def test_sizes_are_the_plans(tiny: TinyModel, tmp_path: Path) -> None:
    plan = plan_conversion(tiny.path, MIXED)
    report = convert(tiny.path, tmp_path / "out", MIXED, calibration=False)
    assert report.report == tmp_path / "out" / HTML
    facts = facts_of(tmp_path / "out")
    assert facts["nbytes"] == plan.nbytes
    assert facts["parameters"] == plan.parameters
    assert facts["source_nbytes"] == plan.source.nbytes()
    assert facts["bits_per_weight"] == pytest.approx(8 * plan.nbytes / plan.parameters, rel=1e-5)
    assert facts["recipe"] == MIXED.to_json()
    assert (facts["nodes_level_0"], facts["nodes"]) == (plan.nodes_level_0, plan.nodes)
    assert [(p["name"], p["rewrites"]) for p in facts["passes"]] == [
        (p.name, p.rewrites) for p in plan.passes
    ]
    assert [w["name"] for w in facts["weights"]] == [w.name for w in plan.weights]
    for found, weight in zip(facts["weights"], plan.weights, strict=True):
        assert (found["format"], found["role"]) == (weight.format, weight.role)
        assert found["nbytes"] == weight.nbytes
        assert tuple(found["shape"]) == weight.shape
    by_layer: dict[int | None, Counter[str]] = {}
    for weight in plan.weights:
        by_layer.setdefault(layer_of(weight.name), Counter())[weight.format] += weight.nbytes
    assert {layer["layer"]: Counter(layer["nbytes"]) for layer in facts["layers"]} == by_layer
    assert [layer["layer"] for layer in facts["layers"]] == [0, 1, 2, None]
    assert facts["calibration"] is None
    assert set(facts["seconds"]) == {"writing"}


@pytest.mark.parametrize("calibrated", [False, True])
def test_errors_are_those_of_the_stored_weights(
    tiny: TinyModel, tmp_path: Path, calibrated: bool
) -> None:
    text = tmp_path / "text.txt" if calibrated else False
    convert(tiny.path, tmp_path / "out", MIXED, calibration=text)
    facts = facts_of(tmp_path / "out")
    artifact, plan = Artifact.open(tmp_path / "out"), plan_conversion(tiny.path, MIXED)
    squares: dict[int | None, np.ndarray] = {}
    measured = 0
    for found, weight in zip(facts["weights"], plan.weights, strict=True):
        if weight.format in ("vector", "f32"):
            assert found["error"] is None
            continue
        exact = weight.expr.read(tiny)
        error = stored_values(weight, artifact.tensor(weight.name)) - exact
        each = np.array([np.square(x, dtype=np.float64).sum() for x in (error, exact)])
        squares[found["layer"]] = squares.get(found["layer"], 0) + each
        assert found["error"] == pytest.approx(math.sqrt(each[0] / each[1]), rel=1e-3), weight.name
        measured += 1
    assert measured > 60
    for layer in facts["layers"]:
        wrong, all_of_it = squares[layer["layer"]]
        assert layer["weight_error"] == pytest.approx(math.sqrt(wrong / all_of_it), rel=1e-3)


def test_some_rows_stand_for_a_large_matrix(tmp_path: Path) -> None:
    config = CONFIGS["llama"][0] | {"vocab_size": 9001, "hidden_size": 96}
    tiny = checkpoint_of("llama", config, tmp_path / "hf")
    convert(tiny.path, tmp_path / "out", "w4", calibration=False)
    artifact, weights = Artifact.open(tmp_path / "out"), plan_conversion(tiny.path, "w4").weights
    by_name = {found["name"]: found["error"] for found in facts_of(tmp_path / "out")["weights"]}
    large = [weight for weight in weights if 9001 in weight.shape]
    assert large
    for weight in large:
        exact = weight.expr.read(tiny)
        error = stored_values(weight, artifact.tensor(weight.name)) - exact
        want = np.linalg.norm(error) / np.linalg.norm(exact)
        assert by_name[weight.name] == pytest.approx(float(want), rel=0.02)


def test_levels_are_those_of_the_formats(tiny: TinyModel, tmp_path: Path) -> None:
    convert(tiny.path, tmp_path / "out", MIXED, calibration=False)
    facts = facts_of(tmp_path / "out")
    artifact, counted = Artifact.open(tmp_path / "out"), Counter[str]()
    for weight in artifact.parts().weights.values():
        if named(weight.format).is_quantized:
            rows, cols = weight.matrix_shape
            codes = unpack_codes(artifact.tensor(weight.name), weight.format, cols)
            used = np.repeat(codes.scales[:rows] != 0, 256, axis=1)[:, : codes.levels.shape[1]]
            counted[weight.format] += int(used.sum())  # panels of zeros have no levels
    assert {found["format"] for found in facts["levels"]} == set(counted)
    for found in facts["levels"]:
        assert found["levels"] == sorted(named(found["format"]).levels)
        assert sum(found["bars"]) == counted[found["format"]]
        middle = sum(found["bars"][32:64])
        assert 0.3 * sum(found["bars"]) < middle < 0.9 * sum(found["bars"])


def seen_by_torch(tiny: TinyModel, samples: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Checkpoint tensor → all that it multiplies, of dense matrices."""
    seen: dict[str, list[np.ndarray]] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda _, x: seen.setdefault(f"{name}.weight", []).append(x[0].numpy().reshape(-1))

    modules = tiny.model.named_modules()
    hooks = [
        module.register_forward_pre_hook(hook(name))
        for name, module in modules
        if isinstance(module, torch.nn.Linear) and ".experts." not in name
    ]
    for sample in samples:
        tiny.logits(sample.tolist())
    for each in hooks:
        each.remove()
    return {name: np.concatenate(found) for name, found in seen.items()}


def test_activations_are_what_torch_sees(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "_ENGINE", "fp32")
    samples: list[np.ndarray] = []
    calibrate = calibrating.calibrate

    def spy(plan: Any, ids: Any, *rest: Any) -> Any:
        samples.extend(ids)
        return calibrate(plan, ids, *rest)

    monkeypatch.setattr("deepmnn.conversion.rounded.calibrate", spy)
    convert(tiny.path, tmp_path / "out", "w8", calibration=tmp_path / "text.txt")
    facts, seen = facts_of(tmp_path / "out"), seen_by_torch(tiny, samples)
    tokens = sum(map(len, samples))
    assert facts["calibration"]["tokens"] == tokens
    assert facts["calibration"]["samples"] == len(samples)
    checked = 0
    for found in facts["activations"]:
        names = [name for name in found["readers"] if name in seen]
        if not names:
            continue
        magnitudes = np.abs(seen[names[0]])
        assert found["count"] == magnitudes.size
        assert found["largest"] == pytest.approx(float(magnitudes.max()), rel=0.03)
        bars, _ = np.histogram(magnitudes, len(found["bars"]), (0, float(magnitudes.max())))
        moved = np.abs(np.cumsum(bars) - np.cumsum(found["bars"])).max()
        assert moved < 0.02 * magnitudes.size  # values on the edge of a bar
        assert found["ranges"]["minmax"]["threshold"] == found["largest"]
        assert found["ranges"]["kl"]["threshold"] <= found["largest"]
        checked += 1
    assert checked >= 8
    (experts,) = facts["experts"]
    assert experts["layer"] == 1
    assert len(experts["tokens"]) == tiny.config["n_routed_experts"]
    assert sum(experts["tokens"]) == tokens * tiny.config["num_experts_per_tok"]
    reached = [n < calibrating.LEAST_TOKENS for n in experts["tokens"]]
    assert 3 * sum(reached) == len(facts["calibration"]["scarce"])


def without_times(artifact: Path) -> tuple[dict[str, Any], str]:
    facts = facts_of(artifact)
    del facts["seconds"]
    page, _, _ = (artifact / HTML).read_text().partition("<h2>Times</h2>")
    return facts, page


class _StoppedError(Exception):
    pass


def test_the_same_conversion_gives_the_same_report_even_if_it_was_stopped(
    tiny: TinyModel, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    convert(tiny.path, tmp_path / "a", "w4", calibration=text)
    convert(tiny.path, tmp_path / "b", "w4", calibration=text)
    steps = 0

    def stop(done: int, total: int, what: str) -> None:
        nonlocal steps
        steps += 1
        if what == "layer 1":
            raise _StoppedError

    with pytest.raises(_StoppedError):
        convert(tiny.path, tmp_path / "c", "w4", calibration=text, progress=stop)
    convert(tiny.path, tmp_path / "c", "w4", calibration=text)
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")
    assert without_times(tmp_path / "a") == without_times(tmp_path / "c")
    assert set(facts_of(tmp_path / "a")["seconds"]) == {"calibrating", "writing"}


def test_what_is_kept_of_a_stage_grows(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = {name: random.standard_normal((50, 8)).astype(np.float32) for name in "ab"}
    exact, rounded = (random.standard_normal((2, 9, 4)).astype(np.float32) for _ in range(2))
    taps = {
        f"layers.3.{name}.weight": Tap(name, "layers.3.chosen", expert)
        for expert, name in enumerate("ab")
    }
    observed = Observed(tmp_path, 50)
    observed.expect(taps)
    observed.add({"a": x["a"], "other": x["b"]}, 0)
    observed.keep(3)
    again = Observed(tmp_path, 50)  # as after a stop
    again.expect(taps)
    again.add({"b": x["b"][:20], "layers.3.chosen": np.zeros((20, 1), np.int32)}, 0)
    again.add({"b": x["b"][20:], "layers.3.chosen": np.ones((30, 1), np.int32)}, 20)
    for index in range(2):
        again.compare({"out": exact[index]}, {"out": rounded[index]})
    again.keep(3)
    for found in again.activations():
        assert (found.layer, found.count) == (3, 400)
        assert found.readers == (f"layers.3.{found.name}.weight",)
        assert found.largest == np.abs(x[found.name]).max()
    assert [found.name for found in again.activations()] == ["a", "b"]
    assert again.experts() == (ExpertFacts(3, (20, 30)),)
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert again.output_errors() == {3: pytest.approx(float(error), rel=1e-6)}
    (tmp_path / "observed-0003.json").write_text("{")
    with pytest.raises(StorageError, match=r"observed-0003\.json"):
        again.activations()


def test_a_report_is_part_of_the_model(tiny: TinyModel, tmp_path: Path) -> None:
    convert(tiny.path, tmp_path / "out", calibration=False)
    artifact = Artifact.open(tmp_path / "out", verify=True)
    assert {HTML, JSON} <= set(artifact.manifest["files"])
    report = convert(tiny.path, tmp_path / "out", "w4", calibration=False, overwrite=True)
    assert facts_of(tmp_path / "out")["quant"] == "w4"
    report = convert(tiny.path, tmp_path / "out", calibration=False, overwrite=True, report=False)
    assert report.report is None
    assert not {HTML, JSON} & {path.name for path in (tmp_path / "out").iterdir()}


def test_a_model_in_the_cache_has_none(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    deepmnn.load(tiny.path)
    assert list(tmp_path.rglob("deepmnn.json"))
    assert not list(tmp_path.rglob(HTML))


def test_random_weights_have_no_errors(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    convert(tiny.path, tmp_path / "out", "w4", random_weights=True)
    facts = facts_of(tmp_path / "out")
    assert facts["source_nbytes"] == 0
    assert all(weight["error"] is None for weight in facts["weights"])
    assert not facts["levels"]
    assert "Weights that lose most" not in (tmp_path / "out" / HTML).read_text()


def test_what_a_search_found(tiny: TinyModel, tmp_path: Path) -> None:
    plan = plan_conversion(tiny.path, "w4")
    names = [tensor.name for weight in plan.weights for tensor in tensors(weight.expr)]
    parts = {name: 0.001 * (index + 1) for index, name in enumerate(dict.fromkeys(names))}
    points = tuple(Point(1000 * n, math.inf if n == 0 else 0.5**n) for n in range(30))
    report = Recorder(plan.source)
    report.searched(Search(points, points[4], parts))
    report.judged(Judged(1000, 0.0123, 0.2, 0.95))
    carry_out(plan, tmp_path / "out", report=report)
    facts = facts_of(tmp_path / "out")
    assert facts["search"]["points"][0]["kl"] is None  # infinite
    assert facts["search"]["chosen"] == {"nbytes": 4000, "kl": 0.0625}
    assert facts["judged"]["kl"] == 0.0123
    for layer in facts["layers"]:
        want = sum(kl for name, kl in parts.items() if layer_of(name) == layer["layer"])
        assert layer["kl"] == pytest.approx(want, rel=1e-4)
    page = (tmp_path / "out" / HTML).read_text()
    assert page.count('class="fill chosen"') == 1
    assert page.count('<tr class="chosen">') == 1
    assert "<b>0.0123</b><span>KL divergence on held-out text" in page
    assert f"<td>{names[-1]}</td>" in page


def test_fp32_has_nothing_to_round(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    convert(tiny.path, tmp_path / "out", "fp32")
    facts = facts_of(tmp_path / "out")
    assert all(layer["weight_error"] is None for layer in facts["layers"])
