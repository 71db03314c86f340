"""MNN's values under the names of our graph, against the reference backend's."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("MNN")

from deepmnn.artifact.reader import Artifact
from deepmnn.backends.mnn.options import MnnOptions
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.conversion.plan import plan as make_plan
from deepmnn.conversion.write import write
from deepmnn.errors import RequestError, StorageError
from deepmnn.exporters.mnn.export import export
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.exporters.mnn.lower import Lowering
from deepmnn.exporters.mnn.network import check_network, decode_network
from deepmnn.exporters.mnn.tapped import write_tapped
from deepmnn.exporters.mnn.values import Held
from deepmnn.graph.ir import Graph
from deepmnn.inspect.side import Layer
from deepmnn.inspect.sides import mnn
from deepmnn.inspect.sides.mnn import MnnSide
from deepmnn.quant.rotated_source import RotatedSource
from deepmnn.quant.smoothed_source import SmoothedSource
from deepmnn.source.source import Source
from exporters.folders import tree
from tiny_models import CONFIGS, WHOLE_BLOCKS, Config, checkpoint_of
from whole_values import checkpoint_values, merged

SAMPLES = [np.array(ids, np.int32) for ids in ([5, 1, 7, 88, 3, 19, 2], [42], [0, 96, 11, 11])]
EXACT = MnnOptions(memory="high")
ALWAYS = {"input_layernorm", "post_attention_layernorm", "attention_residual", "mlp_residual"} | {
    f"self_attn.{name}" for name in ("q_rope", "k_rope", "attention", "o_proj")
}
GROUPED = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")}
LATENT = {f"self_attn.{name}" for name in ("q_a_proj", "q_a_layernorm", "q_b_proj")} | {
    "self_attn.kv_a_layernorm"
}
DENSE = {f"mlp.{name}" for name in ("gate_proj", "up_proj", "mul", "down_proj")}
EXPERTS = {"mlp.gate", "mlp.gate.top_k", "mlp.experts.combine"} | {"mlp.add"}
EXPERTS |= {f"mlp.shared_experts.{name}" for name in ("gate_proj", "up_proj", "mul", "down_proj")}


def checkpoint(path: Path, model_type: str, index: int = 0, **fields: object) -> Config:
    config = CONFIGS[model_type][index] | fields
    checkpoint_of(model_type, config, path, bf16_embedding=True)
    return config


def folder_of(home: Path, level: int = 3, quant: str = "fp32", **options: str) -> MnnFolder:
    """Of the checkpoint in `home / "hf"`."""
    convert(home / "hf", home / "model", quant, level)
    return MnnFolder.open(export(home / "model", home / "folder", **options).path)


def wrong_values(found: Layer, want: Layer, bound: float = 2e-5) -> list[str]:
    """Those further off than that, in the order they were computed in."""
    wrong = []
    for name, value in found.items():
        assert (value.shape, value.dtype) == (want[name].shape, want[name].dtype), name
        difference = np.abs(value.astype(np.float64) - want[name]).max()
        if not difference <= bound * np.abs(want[name]).max():
            wrong.append(name)
    return wrong


@pytest.mark.parametrize(
    ("model_type", "index", "level", "form", "dense", "experts"),
    [
        ("llama", 2, 3, "auto", ALWAYS | GROUPED | DENSE, set()),
        ("qwen3", 1, 3, "auto", ALWAYS | GROUPED | DENSE, set()),
        ("deepseek", 1, 3, "auto", ALWAYS | GROUPED | DENSE, ALWAYS | GROUPED | EXPERTS),
        ("deepseek_v2", 4, 0, "auto", ALWAYS | LATENT | DENSE, ALWAYS | LATENT | EXPERTS),
        ("deepseek_v2", 3, 3, "absorbed", ALWAYS | LATENT | DENSE, ALWAYS | LATENT | EXPERTS),
        ("deepseek_v3", 0, 0, "auto", ALWAYS | LATENT | DENSE, ALWAYS | LATENT | EXPERTS),
        ("deepseek_v3", 3, 3, "expanded", ALWAYS | LATENT | DENSE, ALWAYS | LATENT | EXPERTS),
        ("deepseek_v3", 2, 3, "absorbed", ALWAYS | LATENT | DENSE, ALWAYS | LATENT | EXPERTS),
    ],
)
def test_values_are_the_reference_s(
    model_type: str,
    index: int,
    level: int,
    form: str,
    dense: set[str],
    experts: set[str],
    tmp_path: Path,
) -> None:
    config = checkpoint(tmp_path / "hf", model_type, index)
    folder = folder_of(tmp_path, level, mla_form=form)
    before = tree(folder.path)
    side = MnnSide(folder, 1, EXACT)
    found = list(side.layers(SAMPLES))
    want = checkpoint_values(tmp_path / "hf", SAMPLES)
    assert not wrong_values(merged(found), want)
    assert len(found) == config["num_hidden_layers"] + 1
    assert set(found[-1]) == {"hidden", "logits"}
    for number, layer in enumerate(found[:-1]):
        wanted = experts if f"layers.{number}.mlp.gate" in want else dense
        assert set(layer) >= {f"layers.{number}.{name}" for name in wanted}
        assert ("embed_tokens" in layer) == (number == 0)
    assert tree(folder.path) == before
    assert side.label == "MNN, memory high, precision high"


def change_eps(graph: Graph) -> None:
    for node in graph.nodes:
        if "layers.1.input_layernorm" in node.outputs:
            node.attrs["eps"] = 1e-6


def swap_experts(graph: Graph) -> None:
    for node in graph.nodes:
        if "layers.1.mlp.add" in node.outputs:
            first, second, *others = (node.weights[i : i + 2] for i in range(0, 24, 2))
            node.weights = sum(others, (*second, *first))


@pytest.mark.parametrize(
    ("plant", "first"),
    [(change_eps, "layers.1.input_layernorm"), (swap_experts, "layers.1.mlp.experts.combine")],
)
def test_a_fault_shows_first_where_it_is(
    plant: Callable[[Graph], None], first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "hf", "deepseek_v3")
    whole = Artifact.graph

    def faulty(artifact: Artifact) -> Graph:
        graph = whole(artifact).copy()
        plant(graph)
        return graph

    monkeypatch.setattr(Artifact, "graph", faulty)
    side = MnnSide(folder_of(tmp_path), 1, EXACT)
    want = checkpoint_values(tmp_path / "hf", SAMPLES)
    wrong = wrong_values(merged(list(side.layers(SAMPLES))), want)
    assert wrong[0] == first
    assert "logits" in wrong


def test_many_runs_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "hf", "qwen2", 2)
    side = MnnSide(folder_of(tmp_path), 1, EXACT)
    one = list(side.layers(SAMPLES))
    widths: list[int] = []
    run = mnn.MnnBackend

    def counted(folder: mnn._Tapped, *arguments: object) -> object:
        widths.append(folder.vocab_size)
        return run(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mnn, "MnnBackend", counted)
    tokens = sum(map(len, SAMPLES))
    layer = sum(value.shape[1] for value in one[1].values())
    monkeypatch.setattr(mnn, "MOST_BYTES", 4 * tokens * 2 * layer)
    made = list(side.layers(SAMPLES))
    assert len(widths) == 3  # the first has the embedding's rows, too; the last is the logits'
    assert [set(values) for values in made] == [set(values) for values in one]
    for a, b in zip(made, one, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_what_is_wanted_is_all_that_changes(tmp_path: Path) -> None:
    checkpoint(tmp_path / "hf", "deepseek_v3")
    folder = folder_of(tmp_path)
    path = folder.path / "llm.mnn"
    net = decode_network(path, path.read_bytes())
    network = check_network(net, path, folder.path / "llm.mnn.weight")
    number = net["tensorName"].index("layers.1.mlp.gate.top_k")
    write_tapped(path, net, network, [Held("", number, 3)], tmp_path / "made.mnn")
    made = decode_network(tmp_path / "made.mnn", (tmp_path / "made.mnn").read_bytes())
    assert made["oplists"][: len(net["oplists"])] == net["oplists"]
    assert made["subgraphs"] == net["subgraphs"]
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".mnn"}


def test_a_folder_whose_tensors_have_no_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "hf", "llama")
    with monkeypatch.context() as patch:
        patch.setattr(Lowering, "name", lambda *_: None)
        folder = folder_of(tmp_path)
    found = list(MnnSide(folder, 1, EXACT).layers(SAMPLES))
    assert [set(layer) for layer in found] == [set(), set(), {"logits"}]
    assert not wrong_values(merged(found), checkpoint_values(tmp_path / "hf", SAMPLES))


def test_a_quantised_folder_as_mnn_computes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "hf", "deepseek_v2", hidden_size=48)
    folder = folder_of(tmp_path, quant="w8")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    side = MnnSide(folder, 1)
    layers = side.layers(SAMPLES)
    first = next(layers)
    layers.close()
    found = merged(list(side.layers(SAMPLES)))
    assert not list((tmp_path / "temporary").iterdir())
    assert side.label == "MNN, memory low, precision high"
    for name, value in first.items():
        np.testing.assert_array_equal(value, found[name])
    want = checkpoint_values(tmp_path / "hf", SAMPLES)
    early = [name for name in found if re.match(r"embed|layers\.0\.", name)]
    assert not wrong_values({name: found[name] for name in early}, want, 0.1)


@pytest.mark.parametrize(
    ("model_type", "smoothed"), [("qwen2", True), ("deepseek_v2", False), ("deepseek_v3", True)]
)
def test_a_model_that_was_rotated_for_mnn(model_type: str, smoothed: bool, tmp_path: Path) -> None:
    """As `export` does it, but without rounding: what it changes is not seen."""
    tiny = checkpoint_of(model_type, WHOLE_BLOCKS[model_type], tmp_path / "hf")
    plan = plan_conversion(tmp_path / "hf", "fp32")
    source: Source = RotatedSource(plan.source)
    if smoothed:
        rng = np.random.default_rng(4)
        downs = [name for name in tiny.names() if name.endswith("down_proj.weight")]
        sizes = {n: rng.uniform(0.1, 9, tiny.read(n).shape[1]).astype(np.float32) for n in downs}
        source = SmoothedSource(source, sizes)
    write(make_plan(source, plan.recipe, 3), tmp_path / "model")
    folder = MnnFolder.open(export(tmp_path / "model", tmp_path / "folder").path)
    found = merged(list(MnnSide(folder, 1, EXACT).layers(SAMPLES)))
    want = checkpoint_values(tmp_path / "hf", SAMPLES)
    table = found.pop("embed_tokens")  # rounded to bf16 after it was rotated
    np.testing.assert_allclose(table, want["embed_tokens"], atol=0.03)
    assert not wrong_values(found, want, 0.02)
    layer = {name.removeprefix("layers.1.") for name in found if name.startswith("layers.1.")}
    shown = ALWAYS - {"input_layernorm", "post_attention_layernorm"}
    assert layer >= shown | ({"mlp.gate"} if "deepseek" in model_type else {"mlp.gate_proj"})
    assert ("mlp.mul" in layer or "mlp.shared_experts.mul" in layer) != smoothed


def test_what_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "hf", "llama")
    side = MnnSide(folder_of(tmp_path), 1, EXACT)
    assert side.vocab_size == 97
    with pytest.raises(RequestError, match="a sample of 300 tokens"):
        next(side.layers([np.zeros(300, np.int32)]))
    for samples in ([], [np.empty(0, np.int32)], [np.array([97], np.int32)]):
        with pytest.raises(RequestError):
            next(side.layers(samples))
    monkeypatch.setattr(Path, "symlink_to", raising)
    with pytest.raises(StorageError, match="No space left"):
        next(side.layers(SAMPLES))


def raising(*_: object) -> None:
    raise OSError(28, "No space left on device")
