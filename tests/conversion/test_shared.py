"""Models with equal and zero experts and rows: the same logits, and fewer bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from deepmnn import models
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.repeats import Repeats
from deepmnn.artifact.restored import RestoredSource
from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.pieces import ZEROS
from deepmnn.backends.cpu.program import read_program
from deepmnn.backends.reference import ReferenceBackend
from deepmnn.cli import app
from deepmnn.conversion.convert import convert
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.quant.store import stored_values
from deepmnn.source.random import RandomSource
from gguf_files import write_gguf
from parity import prompts_for, relative_error, run_schedule
from tiny_models import LLAMA, checkpoint_of

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 6001,
    "hidden_size": 256,
    "intermediate_size": 301,
    "moe_intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 192,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 80,
    "kv_lora_rank": 60,
    "qk_nope_head_dim": 18,
    "qk_rope_head_dim": 14,
    "v_head_dim": 22,
}
LENGTHS, STEPS = [9, 4], [(6, 4), (3, 0)]
FILLER = float(np.full(4, 0x3D, np.uint8).view(np.float32)[0])
"""What share_weights takes for no copy."""
EXPERT = "model.layers.{}.mlp.experts.{}."


def tensors() -> dict[str, F32]:
    shapes = tensor_shapes(models.build(CONFIG))
    source = RandomSource(shapes)
    return {name: source.read(name).copy() for name in shapes}


def fill(found: dict[str, F32], layer: int, expert: int, value: float | int) -> None:
    """An expert of one number, or as another one of its layer."""
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = EXPERT.format(layer, expert) + f"{part}.weight"
        other = EXPERT.format(layer, value) + f"{part}.weight"
        found[name][:] = value if isinstance(value, float) else found[other]


def change(found: dict[str, F32]) -> None:
    """Experts of zeros, of one number, and equal ones; rows of zeros and equal rows."""
    fill(found, 1, 0, 0.0)
    fill(found, 2, 4, 0.0)
    fill(found, 1, 2, FILLER)
    fill(found, 2, 3, FILLER)
    fill(found, 2, 1, 5)
    embedding, head = found["model.embed_tokens.weight"], found["lm_head.weight"]
    embedding[5003:] = 0
    embedding[2048:4096] = embedding[:2048]
    head[:2500] = embedding[:2500]
    head[4000:5500] = 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    found = tensors()
    change(found)
    save_file(found, folder / "model.safetensors")
    return folder


def unshared(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Path]) -> Path:
    """What is made when every weight is stored as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(Repeats, "whole", lambda self, data: None)
        patch.setattr(Repeats, "parts", lambda self, *arguments: [])
        return make()


def logits(path: Path, vocab_size: int, **options: Any) -> list[F32]:
    backend = CpuBackend(path, threads=2, **options)
    return run_schedule(backend, prompts_for(LENGTHS, vocab_size), STEPS)


def weight_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def check_same(path: Path, plain: Path, vocab_size: int) -> None:
    """The same weights and the same logits, to the bit."""
    ours, theirs = Artifact.open(path, verify=True), Artifact.open(plain, verify=True)
    assert "shared" not in theirs.manifest
    for name in theirs.graph().weights:
        assert np.array_equal(ours.tensor(name), theirs.tensor(name)), name
    for got, want in zip(logits(path, vocab_size), logits(plain, vocab_size), strict=True):
        np.testing.assert_array_equal(got, want)
    saved = ours.manifest["shared"]["nbytes"]
    assert weight_bytes(plain) - weight_bytes(path) == pytest.approx(saved, abs=60_000)
    assert ours.unshared_nbytes == pytest.approx(theirs.weights_nbytes, abs=60_000)


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("quant", ["fp32", "bf16", "w8", "w4", "w3"])
def test_the_same_logits_of_fewer_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str, level: int
) -> None:
    def made(name: str) -> Path:
        options: dict[str, Any] = {"calibration": False, "report": False}
        return convert(checkpoint, tmp_path / name, quant, level, **options).path

    path = made("shared")
    plain = unshared(monkeypatch, lambda: made("plain"))
    check_same(path, plain, CONFIG["vocab_size"])
    assert weight_bytes(path) < 0.7 * weight_bytes(plain)
    shared = Artifact.open(path).manifest["shared"]
    assert shared["experts"] >= 3  # two of zeros, one of a number; equal ones are one weight
    if level == 3:
        again = made("again")
        for file in path.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_the_reference_agrees(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model", "bf16").path
    artifact = Artifact.open(path)
    graph = artifact.graph()
    oracle = ReferenceBackend(
        graph, lambda name: stored_values(graph.weights[name], artifact.tensor(name))
    )
    want = run_schedule(oracle, prompts_for(LENGTHS, CONFIG["vocab_size"]), STEPS)
    got = logits(path, CONFIG["vocab_size"])
    assert max(map(relative_error, got, want)) < 1e-4


def test_rows_of_zeros_and_equal_rows_are_pieces(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model", "bf16", report=False).path
    weights = {w.name: w for w in read_program((path / PROGRAM).read_bytes()).weights}
    embedding, head = weights["embed_tokens.weight"], weights["lm_head.weight"]
    row = 2 * CONFIG["hidden_size"]
    first, again, zeros = embedding.pieces
    assert first.nbytes == 2048 * row
    assert again.offset == first.offset  # and what is new comes after it in the file
    assert 5003 * row - 8192 < first.nbytes + again.nbytes < 5003 * row + 8192
    assert zeros.shard == ZEROS
    assert 998 * row - 3 * 8192 < zeros.nbytes <= 1024 * row
    assert head.pieces[0].offset == first.offset
    assert head.pieces[0].nbytes >= 2048 * row
    assert any(piece.is_zeros for piece in head.pieces[1:])


def test_experts_of_zeros_take_nothing(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model", "w4", calibration=False, report=False).path
    weights = {w.name: w for w in read_program((path / PROGRAM).read_bytes()).weights}
    for layer, expert in ((1, 0), (2, 4)):
        name = EXPERT.format(layer, expert).removeprefix("model.")
        parts = [weight for key, weight in weights.items() if key.startswith(name)]
        assert len(parts) == 2
        for weight in parts:
            (piece,) = weight.pieces
            assert piece.is_zeros
            assert piece.nbytes == weight.nbytes
    one, same = (
        weights[f"layers.{layer}.mlp.experts.{expert}.down_proj.weight"]
        for layer, expert in ((1, 2), (2, 3))
    )
    assert one.pieces == same.pieces


def test_what_a_checkpoint_quantised_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros of Q8_0 are codes of 128: they are one pattern, which is stored once."""
    config = LLAMA | {"vocab_size": 6100, "hidden_size": 64, "intermediate_size": 96}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    tiny = checkpoint_of("llama", config, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    found = load_file(file)
    found["model.embed_tokens.weight"][1100:] = 0
    save_file(found, file)
    kinds = gguf.GGMLQuantizationType
    write_gguf(tiny, tmp_path / "m.gguf", lambda name, x: kinds.F32 if x.ndim == 1 else kinds.Q8_0)

    def made(name: str) -> Path:
        return convert(tmp_path / "m.gguf", tmp_path / name, "w8", report=False).path

    path = made("shared")
    check_same(path, unshared(monkeypatch, lambda: made("plain")), config["vocab_size"])
    weights = {w.name: w for w in read_program((path / PROGRAM).read_bytes()).weights}
    assert weights["embed_tokens.weight"].format == "q8_0"
    assert len(weights["embed_tokens.weight"].pieces) > 2


def test_info_says_what_was_saved(checkpoint: Path, tmp_path: Path) -> None:
    path = convert(checkpoint, tmp_path / "model", "w8", report=False).path
    done = CliRunner().invoke(app, ["info", str(path)])
    assert done.exit_code == 0
    assert "equal blocks" in done.stdout
    assert "3 experts" in done.stdout
    assert "of zeros)" in done.stdout
    shown = CliRunner().invoke(app, ["info", "--program", str(path)])
    assert "w8[6001, 256] in 3 pieces" in shown.stdout
    assert " of zeros" in shown.stdout


def test_the_checkpoint_comes_out_again(checkpoint: Path, tmp_path: Path) -> None:
    source = RestoredSource(
        Artifact.open(convert(checkpoint, tmp_path / "model", "fp32", report=False).path)
    )
    found = tensors()
    change(found)
    for name, values in found.items():
        assert np.array_equal(source.read(name), values), name
