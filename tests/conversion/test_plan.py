"""Plans: they say all that is then written, and making one reads nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conversion.converted_source import ConvertedSource
from deepmnn import _core, formats, load
from deepmnn.artifact.reader import Artifact
from deepmnn.backends.cpu.program import read_program
from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.conversion.plan import plan
from deepmnn.conversion.write import write
from deepmnn.errors import CheckpointError, RequestError
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import F32
from deepmnn.quant.recipe import RECIPES, Recipe, Rule, recipe_of
from deepmnn.source.checkpoint import Checkpoint
from deepmnn.source.open import open_source
from tiny_models import ALL, CONFIGS, tiny_checkpoint

MIXED = Recipe(
    "mixed",
    (
        Rule("model.layers.0.*", "w8"),
        Rule("role:expert", "w3"),
        Rule("role:lm_head", "bf16"),
        Rule("role:linear", "w4"),
    ),
)


def weights(path: Path) -> dict[str, bytes]:
    """All files but the manifest and the report."""
    apart = ("deepmnn.json", "report.html", "report.json")
    return {p.name: p.read_bytes() for p in path.iterdir() if p.name not in apart}


@pytest.mark.parametrize("recipe", [*RECIPES.values(), MIXED], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("level", [0, 3])
def test_what_is_planned_is_what_is_written(tmp_path: Path, recipe: Recipe, level: int) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    made = plan(open_source(tiny.path), recipe, level)
    assert os.listdir(tmp_path) == ["hf"]
    path = write(made, tmp_path / "out")
    artifact = Artifact.open(path)
    program = read_program((path / "program.bin").read_bytes())
    assert {w.name: (w.format, w.nbytes) for w in made.weights} == {
        w.name: (w.format, artifact.tensor(w.name).nbytes)
        for w in artifact.parts().weights.values()
    }
    assert made.nbytes == sum(artifact.tensor(w.name).nbytes for w in made.weights)
    for name, (at,) in made.locations.items():
        data = (path / made.shards[at.shard].file).read_bytes()
        assert data[at.offset : at.offset + at.nbytes] == artifact.tensor(name).tobytes()
    assert made.draft_memory is not None
    assert program.arenas == tuple(
        max(made.memory.nbytes[d], made.draft_memory.nbytes[d])
        for d in ("tokens", "context", "rows")
    )
    manifest = artifact.manifest
    assert Recipe.from_json(manifest["recipe"], "manifest") == recipe
    assert (manifest["quant"], manifest["optimize_level"]) == (recipe.name, level)
    assert (manifest["nodes_level_0"], manifest["nodes"]) == (made.nodes_level_0, made.nodes)
    assert weights(convert(tiny.path, tmp_path / "same", recipe, level).path) == weights(path)


def test_a_source_may_be_planned_again_and_again(tmp_path: Path) -> None:
    """As a search does: no plan changes another."""
    tiny = tiny_checkpoint("deepseek_v2", 0, tmp_path / "hf")
    source = open_source(tiny.path)
    plans = {name: plan(source, recipe) for name, recipe in RECIPES.items()}
    sizes = [made.nbytes for made in plans.values()]
    assert sizes == sorted(sizes, reverse=True)
    for name in ("w4", "fp32"):
        path = write(plans[name], tmp_path / name)
        assert weights(path) == weights(convert(tiny.path, tmp_path / f"{name}2", name).path)


def test_planning_reads_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Checkpoint, name: str) -> F32:
        raise AssertionError(name)

    monkeypatch.setattr(Checkpoint, "read", read)
    for model_type in ("llama", "qwen3", "deepseek_v2", "deepseek_v3"):
        tiny = tiny_checkpoint(model_type, 0, tmp_path / model_type)
        assert plan_conversion(tiny.path).nbytes > 0


def test_planning_reads_what_may_be_stored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    plain, names = Checkpoint.read, []

    def read(self: Checkpoint, name: str) -> F32:
        names.append(name)
        return plain(self, name)

    monkeypatch.setattr(Checkpoint, "read", read)
    made = plan_conversion(tiny.path)
    assert sorted(names) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert "lm_head.weight" not in made.locations


def test_facts_about_the_source(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("deepseek_v3", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    made = plan_conversion(tiny.path)
    assert (made.dropped, made.unused) == ((), ())
    assert made.source.nbytes() == sum(tensor.nbytes for tensor in tensors.values())
    assert made.parameters == sum(tensor.numel() for tensor in tensors.values())
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": tensors["model.norm.weight"].clone()}
    del tensors["model.layers.2.eh_proj.weight"]
    save_file(tensors | extra, file)
    made = plan_conversion(tiny.path)
    assert all(name.startswith("layers.2.") for name in made.dropped)
    left = {name for name in tensors if name.startswith("model.layers.2.")}
    assert set(made.unused) == left  # inv_freq follows from config.json
    assert convert(tiny.path, tmp_path / "out").unused == made.unused


def logits(path: Path, ids: list[int]) -> np.ndarray:
    return load(path, threads=1).logits(ids)


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "deepseek_v2", "deepseek_v3"])
def test_a_head_beside_the_embedding_that_it_is_tied_to(
    tmp_path: Path, model_type: str, level: int
) -> None:
    """If it differs it is kept, as in transformers; if it does not, it is stored once."""
    index = next(i for i, c in enumerate(CONFIGS[model_type]) if c.get("tie_word_embeddings"))
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    file, ids = tiny.path / "model.safetensors", [3, 9, 27, 81]
    tensors = {n: t for n, t in load_file(file).items() if n != "lm_head.weight"}
    save_file(tensors, file)
    tied = plan_conversion(tiny.path, "fp32", level)
    same = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": same}, file, {"format": "pt"})
    made = plan_conversion(tiny.path, "fp32", level)
    assert (made.nbytes, made.parameters, made.unused) == (tied.nbytes, tied.parameters, ())
    one_number = same.clone()  # where no sample sees it
    one_number[50, 7] += 0.5
    for head in (one_number, -same):
        save_file(tensors | {"lm_head.weight": head}, file, {"format": "pt"})
        made = plan_conversion(tiny.path, "fp32", level)
        assert made.unused == ()
        assert made.parameters == tied.parameters + head.numel()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny.path, attn_implementation="eager", experts_implementation="eager"
        )
        with torch.no_grad():
            want = model(torch.tensor([ids])).logits[0].numpy()
        path = convert(tiny.path, tmp_path / "out", "fp32", level, overwrite=True).path
        np.testing.assert_allclose(logits(path, ids), want, atol=1e-4 * np.abs(want).max())


def test_what_is_not_read_is_named_biases_first(tmp_path: Path) -> None:
    """A checkpoint of another family under this one's name computes nonsense without its biases."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    width = CONFIGS["llama"][0]["hidden_size"]
    extra = {f"aaa.{i}.weight": torch.ones(2) for i in range(5)}
    biases = {
        f"model.layers.{i}.self_attn.{p}_proj.bias": torch.ones(width)
        for i in (0, 1)
        for p in "qkv"
    }
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "model.layers.0.self_attn.q_proj.input_scale": torch.ones(1),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
    }
    save_file(load_file(file) | extra | buffers | biases, file)
    made = plan_conversion(tiny.path)
    assert set(made.unused[:6]) == biases.keys()
    assert set(made.unused[6:]) == extra.keys()


def test_biases_of_zeros_are_not_missed(tmp_path: Path) -> None:
    """AutoGPTQ wrote one for every layer, whatever the model has."""
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    file = tiny.path / "model.safetensors"
    tensors = load_file(file)
    stems = [name.removesuffix(".weight") for name in tensors if "_proj" in name]
    biases = {f"{stem}.bias": torch.zeros(len(tensors[f"{stem}.weight"])) for stem in stems}
    assert len(biases) >= 14
    save_file(tensors | biases, file)
    assert plan_conversion(tiny.path).unused == ()
    last = f"{stems[-1]}.bias"
    biases[last][-1] = 1e-6
    save_file(tensors | biases, file)
    assert plan_conversion(tiny.path).unused == (last,)
    others = {
        "matrix.bias": torch.zeros(2, 2),
        "integers.bias": torch.zeros(2, dtype=torch.int32),
        "zeros": torch.zeros(2),
    }
    save_file(tensors | others, file)
    assert set(plan_conversion(tiny.path).unused) == others.keys()


def test_the_report_of_a_scheme_has_no_scales(tmp_path: Path) -> None:
    from conversion.test_convert import bf16_checkpoint, fp8_checkpoint

    fp8_checkpoint(tmp_path / "fp8", bf16_checkpoint(tmp_path / "bf16"))
    assert plan_conversion(tmp_path / "fp8").unused == ()


def test_impossible_plans(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    for arguments in ({"quant": "w7"}, {"optimize_level": 4}, {"seed": -1}):
        with pytest.raises(RequestError):
            plan_conversion(tiny.path, **arguments)
    with pytest.raises(CheckpointError, match="is missing"):
        plan_conversion(tmp_path / "nothing")


# ------------------------------------------------------------------------- codes, not numbers


@pytest.fixture
def no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rounded to codes, by the core or in numpy."""
    plain = _core.quantize_pack

    def quantize_pack(matrix: F32, format: str, *rest: int) -> np.ndarray:
        assert not formats.named(format).is_quantized, "it was rounded"
        return plain(matrix, format, *rest)

    monkeypatch.setattr(_core, "quantize_pack", quantize_pack)


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("quant", ["w8", "w4"])
@pytest.mark.parametrize(("model_type", "index"), ALL[::3])
def test_a_converted_model_converts_to_the_same_bytes_without_rounding(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    model_type: str,
    index: int,
    quant: str,
    level: int,
) -> None:
    tiny = tiny_checkpoint(model_type, index, tmp_path / "hf")
    want = weights(convert(tiny.path, tmp_path / "want", quant, level).path)
    made = plan(open_source(tiny.path), recipe_of(quant), 0)
    first = Artifact.open(write(made, tmp_path / "first"))
    source = ConvertedSource(first, open_source(tiny.path))
    request.getfixturevalue("no_rounding")
    assert weights(write(plan(source, made.recipe, level), tmp_path / "again")) == want
    roles = {t.name: w.role for w in made.weights for t in tensors(w.expr)}
    assert {roles[name] for name in source.read_names} <= {"vector", "router"}


def test_codes_of_another_format_are_not_taken(tmp_path: Path) -> None:
    tiny = tiny_checkpoint("llama", 0, tmp_path / "hf")
    first = Artifact.open(convert(tiny.path, tmp_path / "first", "w4", 0).path)
    source = ConvertedSource(first, open_source(tiny.path))
    for recipe in (RECIPES["w8"], RECIPES["w5"], RECIPES["bf16"]):
        want = convert(tiny.path, tmp_path / "want", recipe, overwrite=True).path
        path = write(plan(source, recipe), tmp_path / "again", overwrite=True)
        assert weights(path) == weights(want)
