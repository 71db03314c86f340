"""The page about a model: its figures against other sources, and whole HTML whatever things are
called.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.torch import load_file

from byte_tokenizer import write_tokenizer
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.conversion.report.facts import CalibrationFacts, Judged, WeightFacts
from deepmnn.conversion.report.recorder import JSON
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.exporters.mnn.export import export
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.graph.workload import Workload
from deepmnn.inspect.report import errors
from deepmnn.inspect.report.findings import Findings
from deepmnn.inspect.report.findings import Judged as JudgedBy
from deepmnn.inspect.report.memory import by_context, contexts
from deepmnn.inspect.report.page import page
from deepmnn.inspect.report.recorded import Recorded, recorded
from deepmnn.inspect.report.subject import Subject, opened, planned
from deepmnn.measure.benchmark import Machine, Report, Row, Speed
from deepmnn.measure.judge import judge
from deepmnn.models import build
from deepmnn.quant.recipe import Recipe, Rule
from deepmnn.source.open import open_source
from html_page import HOSTILE, checked, printed
from tiny_artifact import tiny_artifact, write_config
from tiny_models import CONFIGS, TinyModel, checkpoint_of

PUBLISHED = Path(__file__).parents[1] / "models" / "published"
TITLES = [
    *("Graph", "Sizes", "Rounding", "Accuracy", "Speed", "Memory by context length"),
    "Recipe and calibration",
]
MIXED = Recipe(
    "mixed", (Rule("role:expert", "w4"), Rule("role:embedding", "bf16"), Rule("*", "w8"))
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    path = tmp_path_factory.mktemp("report")
    config = CONFIGS["deepseek_v3"][0] | {"vocab_size": 271}
    made = checkpoint_of("deepseek_v3", config, path / "hf")
    write_tokenizer(made.path)
    convert(made.path, path / "out", MIXED, calibration=False)
    return made


@pytest.fixture(scope="module")
def artifact(tiny: TinyModel) -> Artifact:
    return Artifact.open(tiny.path.parent / "out")


def subject_of(model: Path | Artifact) -> Subject:
    found = opened(model)
    assert found is not None
    return found.subject


def titles(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


# ----------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # as their papers and model cards say
        ("DeepSeek-V3", 37),
        ("DeepSeek-V2-Lite", 2.4),
        ("deepseek-moe-16b-base", 2.8),
    ],
)
def test_what_a_token_is_multiplied_with(name: str, billions: float) -> None:
    graph = build(json.loads((PUBLISHED / f"{name}.json").read_text()))
    active = Subject.active.func(cast(Subject, SimpleNamespace(begin=SimpleNamespace(graph=graph))))
    width = graph.values["embed_tokens"].width
    table = math.prod(graph.weights["embed_tokens.weight"].shape)
    assert active == Workload.of(graph).macs(1, 0, 1)
    assert 0.95 * billions <= (active + table) / 1e9 <= 1.11 * billions, (active, width)


def test_figures_of_a_converted_model(artifact: Artifact, tiny: TinyModel) -> None:
    subject = subject_of(artifact)
    stored = load_file(tiny.path / "model.safetensors")
    read = {name.removeprefix("model.") for name in stored}
    assert subject.parameters == sum(tensor.numel() for tensor in stored.values())
    assert len(read) == len(stored)
    drafting = sum(t.numel() for n, t in stored.items() if n.startswith("model.layers.2."))
    assert subject.draft_parameters == drafting > 0
    assert subject.draft_layers == "layer 2"
    assert subject.nbytes == sum(weight.nbytes for weight in subject.weights)
    assert subject.nbytes <= artifact.weights_nbytes < 1.1 * subject.nbytes
    assert [step.result.name for step in subject.steps] == [
        record["name"] for record in artifact.manifest["passes"]
    ]
    assert len(subject.begin.graph.nodes) == artifact.manifest["nodes_level_0"]
    formats = {w.role: w.format for w in subject.weights}
    assert (formats["expert"], formats["embedding"], formats["linear"]) == ("w4", "bf16", "w8")


def test_memory_by_context(artifact: Artifact) -> None:
    subject = subject_of(artifact)
    assert contexts(subject.context_length) == [256]
    (need,) = by_context(subject)
    config = artifact.config
    width = config["num_hidden_layers"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"])
    assert need.caches == {
        "f32": 256 * width * 4,
        "bf16": 256 * width * 2,
        "int8": round(256 * width * 17 / 16),
    }
    plan = plan_memory(artifact.graph(), reuse=True)
    assert need.activations == plan.peak_nbytes(256, 256, 1)
    assert need.total("bf16") == subject.nbytes + 256 * width * 2 + need.activations
    assert contexts(512) == [512]
    assert contexts(4096) == [512, 1024, 2048, 4096]
    assert contexts(5000) == [512, 1024, 2048, 4096, 5000]


# ------------------------------------------------------------------------------------ errors


def test_measured_errors_are_those_that_the_conversion_saw(
    artifact: Artifact, tiny: TinyModel
) -> None:
    found, told = opened(artifact), recorded(artifact)
    assert found is not None
    assert found.restored is not None
    assert told is not None
    shown: list[tuple[int, int, str]] = []
    source = open_source(tiny.path)
    weights = errors.measure(artifact, found.restored, source, lambda *n: shown.append(n))
    assert shown[-1][0] == shown[-1][1]
    saw = {weight.name: weight for weight in told.weights}
    assert len(weights) == len(saw)
    for weight in weights:
        want = saw[weight.name]
        assert replace(weight, error=None) == replace(want, error=None)
        if weight.format == "vector":
            assert weight.error is None
        elif want.error is not None:
            assert weight.error == pytest.approx(want.error, rel=1e-4)
    assert sum(weight.error is not None for weight in weights) > 60


def test_another_checkpoint_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    found = opened(artifact)
    assert found is not None
    assert found.restored is not None
    wider = CONFIGS["deepseek_v3"][0] | {"vocab_size": 271, "intermediate_size": 60}
    other = checkpoint_of("deepseek_v3", wider, tmp_path / "wide")
    with pytest.raises(RequestError, match=r"gate_proj.*shape \[60, 36\].*\[53, 36\].*converted"):
        errors.measure(artifact, found.restored, open_source(other.path), None)
    other = checkpoint_of("llama", CONFIGS["llama"][0] | {"vocab_size": 271}, tmp_path / "llama")
    with pytest.raises(RequestError, match="has no tensor"):
        errors.measure(artifact, found.restored, open_source(other.path), None)


def weight(layer: int | None, role: str, size: int, error: float | None) -> WeightFacts:
    return WeightFacts(f"{layer}.{role}", role, "w4", layer, (size, 2), 9, "BF16", error)


def test_errors_together_count_by_numbers() -> None:
    found = [
        *(weight(0, "linear", 10, 0.1), weight(0, "linear", 30, 0.3), weight(1, "linear", 5, 0.2)),
        *(weight(0, "router", 5, None), weight(None, "lm_head", 7, 0.05)),
    ]
    linear, head = errors.by_role(found)
    assert (linear.name, linear.count, head.name, head.count) == ("linear", 3, "lm_head", 1)
    each = np.repeat([0.1, 0.3, 0.2], [20, 60, 10])
    assert linear.error == pytest.approx(math.sqrt(np.mean(each**2)))
    by_layer = dict(errors.by_layer(found, "linear"))
    assert by_layer == {0: pytest.approx(math.sqrt(np.mean(each[:80] ** 2))), 1: 0.2}
    assert errors.by_layer(found, "lm_head") == []


def change(fields: dict[str, Any], key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        fields = fields[int(part) if part.isdigit() else part]
    fields[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights.0.error", "large"),
        ("weights.0.error", -1),
        ("weights.0.format", "w77"),
        ("weights.0.shape", 7),
        ("weights.0.name", None),
        ("weights", None),
        ("calibration", [1]),
        ("judged", {"kl": 1}),
        ("source", 3),
        ("source_nbytes", None),
    ],
)
def test_a_damaged_record_is_refused(
    artifact: Artifact, tmp_path: Path, key: str, value: object
) -> None:
    fields = json.loads((artifact.path / JSON).read_text())
    change(fields, key, value)
    (tmp_path / JSON).write_text(json.dumps(fields))
    damaged = SimpleNamespace(path=tmp_path, manifest={"files": {JSON: None}})
    with pytest.raises(ArtifactError, match="is damaged"):
        recorded(cast(Artifact, damaged))


def test_no_record_is_no_fault(artifact: Artifact, tmp_path: Path) -> None:
    assert recorded(Artifact.open(tiny_artifact(tmp_path))) is not None
    none = SimpleNamespace(path=tmp_path, manifest={"files": {}})
    assert recorded(cast(Artifact, none)) is None
    (tmp_path / JSON).write_text('{"format_version": 99}')
    later = SimpleNamespace(path=tmp_path, manifest={"files": {JSON: None}})
    assert recorded(cast(Artifact, later)) is None


# -------------------------------------------------------------------------------------- page


def everything(subject: Subject, name: str) -> Findings:
    """All that can be found out, every text the same."""
    rng = np.random.default_rng(0)

    def predict(ids: Any) -> Any:
        yield rng.standard_normal((len(ids), 7)).astype(np.float32)

    judgement = judge(predict, [[1, 2, 3]], predict)
    told = tuple(replace(w, name=name, origin=name, error=0.1) for w in subject.weights)
    row = Row(64, 8, 1, Speed(1000.0, 3.0), Speed(50.0, 1.0), 0.2, 0.7, 0.1)
    return Findings(
        Recorded(name, 100, told, CalibrationFacts(3, 100, 7, (name,)), Judged(9, 0.1, 0.2, 0.9)),
        told,
        name,
        JudgedBy(judgement, name, name),
        Report(Machine(2, name, 1e10, 1e11, 1e10), [row]),
        1 << 30,
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_text(artifact: Artifact, name: str) -> None:
    plain = subject_of(artifact)

    def named(text: str) -> str:
        subject = subject_of(artifact)
        for shot in (subject.begin, *(step.after for step in subject.steps)):
            for node in shot.graph.nodes[:9]:
                node.name = text
        recipe = {"name": text, "rules": [{"pattern": text, "format": "w4"}]}
        changed = replace(subject, quant=text, recipe=recipe, config={**plain.config})
        return page(text, changed, everything(changed, text))

    text = named(name)
    assert "".join(checked(text).text).count(printed(name)) >= 12
    assert text.count("<") == named("plain").count("<")
    assert titles(text)[:3] == TITLES[:3]


def test_a_page_with_everything(artifact: Artifact) -> None:
    subject = subject_of(artifact)
    text = page("tiny", subject, everything(subject, "hf"))
    parsed = checked(text)
    assert [title for title in titles(text) if title in TITLES] == TITLES
    words = " ".join(parsed.text)
    for step in subject.steps:
        assert step.result.name in words
        if step.result.rewrites:
            assert f"{step.result.rewrites} rewrites" in words
    for said in ("3 samples, 100 tokens", "KL divergence", "1,000 ± 3", "70 %", "this machine"):
        assert said in words, said
    assert "None" not in words
    assert "nan" not in words
    assert len(text) < 1_000_000


def test_what_nobody_measured_says_how_to_get_it(artifact: Artifact) -> None:
    text = page("tiny", subject_of(artifact), Findings())
    assert titles(text) == TITLES
    words = " ".join(checked(text).text)
    assert words.count("Not measured") == 2
    assert "Give the checkpoint as the reference" in words


def test_a_config_alone(tmp_path: Path) -> None:
    write_config(tmp_path / "hf", tokenizer=False, num_nextn_predict_layers=1)
    found = planned(tmp_path / "hf", "w4")
    assert found.artifact is None
    text = page("hf", found.subject, Findings(memory=1 << 34))
    assert titles(text) == TITLES
    assert "config.json alone, as a conversion to w4 would store it" in " ".join(
        checked(text).text
    ).replace("its weights", "it")


def test_a_folder_for_mnn(tmp_path: Path) -> None:
    folder = export(tiny_artifact(tmp_path, "w8"), tmp_path / "folder").path
    subject = subject_of(folder)
    size = (folder / "llm.mnn.weight").stat().st_size
    assert subject.nbytes >= size
    (need, *_) = by_context(subject)
    assert need.activations is None
    assert list(need.caches) == ["f32"]
    text = page("folder", subject, Findings())
    words = " ".join(checked(text).text)
    assert titles(text) == [title for title in TITLES if title != "Rounding"]
    assert "llm.mnn.weight" in words
    assert "MNN plans its activations itself" in words


def test_a_path_that_is_no_model_is_none(tmp_path: Path) -> None:
    write_config(tmp_path / "hf")
    assert opened(tmp_path / "hf") is None


@pytest.mark.slow
def test_the_largest_model_is_a_small_page(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes((PUBLISHED / "DeepSeek-V3.json").read_bytes())
    found = planned(config, "w4")
    text = page("DeepSeek-V3", found.subject, Findings())
    checked(text)
    assert len(text.encode()) < 3_000_000
    assert "layers 3 to 60, alike; drawn: layer 32" in text
    assert "2,765 → 728" in text
    assert f"{58 * 256} weights [2048, 7168] in w4, " in text
