"""Planted faults are found and named, and nothing is said of sound models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faulty import artifact, exported, wrong

import planted
from deepmnn.artifact.manifest import MANIFEST
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.convert import convert
from deepmnn.exporters.mnn.export import export
from deepmnn.inspect.check.checks import check
from deepmnn.inspect.check.router import check_routers
from deepmnn.inspect.check.subject import Converted
from exporters.folders import change_json, reseal
from planted import Plant
from tiny_models import ALL, DENSE, tiny_checkpoint

BUILDER_FAULTS = [
    ("llama", planted.wrong_pairs, "RoPE pairs", "2i with 2i+1"),
    ("deepseek_v3", planted.wrong_pairs, "RoPE pairs", "i with i+3"),
    ("deepseek_v2", planted.wrong_pairs, "RoPE pairs", "i with i+3"),
    ("llama yarn", planted.no_mscale, "YaRN mscale", "1"),
    ("deepseek_v2", planted.no_mscale, "YaRN mscale", "1"),
    ("deepseek_v2", planted.no_softmax_mscale, "attention scale", "0.18"),
    ("llama", planted.other_base, "RoPE base", "a base of about 9000"),
    ("qwen3", planted.other_base, "RoPE base", "a base of about 9000"),
    ("deepseek_v3", planted.other_base, "RoPE base", "a base of about 9000"),
    ("llama", planted.small_eps, "norms' eps", "1e-06"),
    ("qwen3", planted.small_eps, "norms' eps", "1e-06"),
    ("deepseek_v3", planted.small_eps, "norms' eps", "1e-06 in layers.0.input_layernorm"),
    ("deepseek_v3", planted.biased_weights, "router, layer 1", "the bias is added to the weights"),
    ("deepseek_v3", planted.other_groups, "router, layer 1", "groups are scored by their best"),
    ("deepseek_v2", planted.other_groups, "router, layer 0", "the sum of their two best"),
    ("deepseek_v3", planted.no_factor, "router, layer 1", "routed_scaling_factor is left out"),
    ("deepseek_v2", planted.no_factor, "router, layer 0", "routed_scaling_factor is left out"),
]
"""Model, what is wrong with its builder, the line that says so, and what it says."""

FAST = {
    ("llama", planted.wrong_pairs),
    ("deepseek_v3", planted.wrong_pairs),
    ("llama yarn", planted.no_mscale),
    ("deepseek_v2", planted.no_softmax_mscale),
    ("qwen3", planted.other_base),
    ("deepseek_v3", planted.small_eps),
    ("deepseek_v3", planted.biased_weights),
    ("deepseek_v2", planted.other_groups),
    ("deepseek_v2", planted.no_factor),
}
"""One of each kind; make test-all plants the others, too."""


def faults() -> list[Any]:
    return [
        pytest.param(*fault, marks=() if fault[:2] in FAST else pytest.mark.slow)
        for fault in BUILDER_FAULTS
    ]


@pytest.mark.parametrize(("model", "plant", "line", "said"), faults())
def test_a_fault_of_the_builder_is_found_in_the_program(
    tmp_path: Path, model: str, plant: Plant, line: str, said: str
) -> None:
    found = wrong(artifact(model, tmp_path, plant))
    assert said in found[line].found
    assert found[line].advice
    named = {name.split(",")[0] for name in found}
    if plant is not planted.other_base:  # transformers says so, too
        assert named == {line.split(",")[0]}


@pytest.mark.parametrize(
    ("model", "plant", "line", "said"),
    [fault for fault in faults() if fault.values[1] is not planted.wrong_pairs],
)
def test_a_fault_of_the_builder_is_found_in_a_folder_for_mnn(
    tmp_path: Path, model: str, plant: Plant, line: str, said: str
) -> None:
    found = wrong(exported(artifact(model, tmp_path, plant), tmp_path / "mnn"))
    names = {name.split(",")[0] for name in found}
    assert names == {line.split(",")[0]}
    if line != "norms' eps":
        assert any(said in each.found for each in found.values())


@pytest.mark.parametrize("plant", [planted.other_base, planted.small_eps, planted.wrong_pairs])
def test_a_fault_of_the_builder_is_found_before_a_checkpoint_is_converted(
    tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact("deepseek_v3", tmp_path)
    plant(monkeypatch)
    assert wrong(tmp_path / "checkpoint")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_faults_are_found_in_plain_ops(tmp_path: Path, level: int) -> None:
    model = artifact("deepseek_v3", tmp_path, planted.wrong_pairs, optimize_level=level)
    assert set(wrong(model)) == {"RoPE pairs"}


def test_a_program_that_is_not_the_graph_is_found(tmp_path: Path) -> None:
    model = artifact("llama", tmp_path)
    graph = json.loads((model / "graph.json").read_text())
    for node in graph["nodes"]:
        if "scale" in node["attrs"]:
            node["attrs"]["scale"] *= 2
    (model / "graph.json").write_text(json.dumps(graph))
    reseal(model / MANIFEST)
    found = wrong(model)
    assert set(found) == {"program.bin"}
    assert "scale" in found["program.bin"].found


def test_one_layer_that_is_wrong_is_named(tmp_path: Path) -> None:
    """The fault is in the graph and in the program: both say 1.5 times the scale, in layer 1."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        from deepmnn.graph.builder import GraphBuilder

        plain = GraphBuilder.attention

        def attention(self: GraphBuilder, *args: object) -> str:
            changed = (*args[:-1], args[-1] * 1.5) if "layers.1" in str(args[3]) else args
            return plain(self, *changed)  # type: ignore[arg-type]

        patch.setattr(GraphBuilder, "attention", attention)

    assert set(wrong(artifact("llama", tmp_path, plant))) == {"attention scale, layers 1"}


def test_an_untied_head_is_found(tmp_path: Path) -> None:
    model = artifact("llama", tmp_path)
    change_json(model / "config.json", tie_word_embeddings=True)
    reseal(model / MANIFEST)
    found = wrong(model)
    assert set(found) == {"output head"}
    assert "tied" in found["output head"].expected


def test_a_tensor_that_config_json_forgets_is_found(tmp_path: Path) -> None:
    """Biases of q, k and v, in a checkpoint whose config.json does not name them."""
    model = tiny_checkpoint("llama", 2, tmp_path / "model")
    change_json(model.path / "config.json", attention_bias=False)
    found = wrong(model.path)
    assert set(found) == {"tensors that nothing reads"}
    assert "bias" in found["tensors that nothing reads"].found


SOUND = [
    *[("qwen3", 1), ("deepseek_v2", 1), ("deepseek_v3", 0)],
    *[("deepseek_v32", 0), ("deepseek_v4", 0), ("deepseek_v4", 1)],
]


@pytest.mark.parametrize(("model_type", "index"), SOUND)
def test_sound_models_are_not_accused(tmp_path: Path, model_type: str, index: int) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "model", quant="w8")
    forms = ["checkpoint", "model"]
    if (model_type, index) in DENSE:
        export(tmp_path / "model", tmp_path / "mnn")
        forms.append("mnn")
    for form in forms:
        lines = list(check(tmp_path / form))
        assert not [line for line in lines if line.verdict == "wrong"], form
        assert sum(line.verdict == "ok" for line in lines) >= 3, form


def test_a_router_of_v4_that_is_wrong_is_named(tmp_path: Path) -> None:
    """The model is the checkpoint's; its config.json says something else afterwards."""
    tiny_checkpoint("deepseek_v4", 0, tmp_path / "checkpoint")
    convert(tmp_path / "checkpoint", tmp_path / "model", quant="fp32")
    path = tmp_path / "model" / "config.json"
    subject = Converted(Artifact.open(tmp_path / "model"))
    for changed, said in (
        ({"scoring_func": "sigmoid"}, "scores are sqrtsoftplus"),
        ({"routed_scaling_factor": 3.0}, "0 of 512 rows choose others"),
        ({"num_experts_per_tok": 2}, "512 of 512 rows choose others"),
    ):
        subject.config = json.loads(path.read_text()) | changed
        lines = check_routers(subject)
        assert [line.verdict for line in lines if "layers 0" not in line.name].count("ok") == 0
        assert any(said in line.found for line in lines), [line.found for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize(("model_type", "index"), ALL)
def test_no_sound_model_is_accused(tmp_path: Path, model_type: str, index: int, level: int) -> None:
    tiny_checkpoint(model_type, index, tmp_path / "checkpoint")
    assert not wrong(tmp_path / "checkpoint")
    for quant in ("w4", "fp32"):
        model = tmp_path / quant
        convert(tmp_path / "checkpoint", model, quant=quant, optimize_level=level)
        assert not wrong(model)
        if (level >= 2 or "deepseek" not in model_type) and (model_type, index) in DENSE:
            export(model, tmp_path / f"{quant}-mnn")
            assert not wrong(tmp_path / f"{quant}-mnn")
