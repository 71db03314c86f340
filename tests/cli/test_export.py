"""deepmnn export: what it prints, and its errors on one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from byte_tokenizer import write_tokenizer
from deepmnn.cli import app
from deepmnn.conversion import carry_out
from deepmnn.conversion.convert import convert
from exporters.folders import change_json
from tiny_artifact import tiny_artifact
from tiny_models import CONFIGS, checkpoint_of


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("cli-export"), quant="w4")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def bad(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return result.stderr


def test_it_says_what_it_wrote(artifact: Path, tmp_path: Path) -> None:
    result = run(artifact, tmp_path / "f")
    assert result.exit_code == 0, result.output
    assert "note" not in result.stderr
    path, size, took = result.stdout.splitlines()
    assert path == str(tmp_path / "f")
    assert re.fullmatch(r"  size   \d+\.\d kB, \d+ MNN ops, latent attention expanded", size)
    assert re.fullmatch(r"  took   \d+\.\d s", took)


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_the_form_and_overwriting(artifact: Path, tmp_path: Path, form: str) -> None:
    assert run(artifact, tmp_path / "f").exit_code == 0
    assert "--overwrite" in bad(artifact, tmp_path / "f", "--mla", form)
    result = run(artifact, tmp_path / "f", "--mla", form, "--overwrite")
    assert f"latent attention {form}" in result.stdout
    manifest = json.loads((tmp_path / "f" / "deepmnn.json").read_text())
    assert manifest["mla_form"] == form


def test_android(artifact: Path, tmp_path: Path) -> None:
    result = run(artifact, tmp_path / "phone", "--target", "android")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{tmp_path / 'phone' / 'phone'}\n")
    assert (tmp_path / "phone" / "project" / "README.md").is_file()


def test_a_note_goes_to_stderr(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path)
    decoder = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}
    change_json(tmp_path / "source" / "tokenizer.json", decoder=decoder)
    convert(tmp_path / "source", artifact, "w8", random_weights=True, overwrite=True)
    result = run(artifact, tmp_path / "f")
    assert result.exit_code == 0
    assert result.stderr.startswith("  note   MNN's own tokenizer cannot be used")
    assert "cannot be used" not in result.stdout
    assert "decoder" in bad(artifact, tmp_path / "phone", "--target", "android")


def test_what_it_refuses(artifact: Path, tmp_path: Path) -> None:
    result = run(artifact, tmp_path / "f", "--target", "ios")
    assert result.exit_code == 2
    assert "mnn or android or hf or gguf" in re.sub(r"[\s│]+", " ", result.stderr)
    assert run(artifact).exit_code == 2
    assert "auto or expanded or absorbed" in bad(artifact, tmp_path / "f", "--mla", "latent")
    assert "expected weights" in bad(artifact.parent / "source", tmp_path / "f")
    assert "missing" in bad(tmp_path / "none", tmp_path / "f")
    assert "the source" in bad(artifact, artifact, "--overwrite")
    assert not (tmp_path / "f").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer of bytes, and rows of whole blocks."""
    fields = {"vocab_size": 271, "hidden_size": 96, "intermediate_size": 64, "head_dim": 32}
    path = tmp_path_factory.mktemp("checkpoint") / "hf"
    checkpoint_of("llama", CONFIGS["llama"][0] | fields, path)
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("kind", ["mnn", "android"])
def test_a_checkpoint_is_calibrated(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    flags = ("--target", kind, "--bits", 4, "--block-size", 32, "--samples", 3)
    result = run(checkpoint, tmp_path / "f", *flags)
    assert result.exit_code == 0, result.output
    assert re.search(r"rounded by 3 samples, 768 tokens: 15 matrices", result.stdout)
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]
    folder = tmp_path / "f" if kind == "mnn" else tmp_path / "f" / "f"
    assert json.loads((folder / "deepmnn.json").read_text())["quant"] == "4 bits"
    plain = run(checkpoint, tmp_path / "g", *flags, "--no-calibration")
    assert "rounded by" not in plain.stdout


def test_nobody_calibrates_for_nothing(
    checkpoint: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the export would refuse is refused first."""
    monkeypatch.setattr(carry_out, "rounded", None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for kind in ("mnn", "android"):
        message = bad(checkpoint, tmp_path / "taken", "--bits", 4, "--target", kind)
        assert "already exists" in message
    assert "converted already" in bad(artifact, tmp_path / "f", "--bits", 4)
    assert "--bits is 5" in bad(checkpoint, tmp_path / "f", "--bits", 5)
    assert "--block-size is 48" in bad(checkpoint, tmp_path / "f", "--bits", 4, "--block-size", 48)
    result = run(artifact, tmp_path / "f", "--no-calibration")
    assert result.exit_code == 2
    assert "--bits 4" in result.stderr


def test_other_programs(checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    """From a checkpoint, which is not converted, and from a converted model."""
    result = run(checkpoint, tmp_path / "hf", "--target", "hf", "--type", "fp32")
    assert result.exit_code == 0, result.output
    path, size, took = result.stdout.splitlines()
    assert path == str(tmp_path / "hf")
    assert re.fullmatch(r"  size   \d+\.\d kB, 21 tensors, float32", size)
    assert re.fullmatch(r"  took   \d+\.\d s", took)
    assert "--overwrite" in bad(artifact, tmp_path / "hf", "--target", "hf")
    result = run(artifact, tmp_path / "hf", "--target", "hf", "--overwrite")
    assert "bfloat16" in result.stdout
    assert "missing" in bad(tmp_path / "none", tmp_path / "f", "--target", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_gguf(checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    for model in (checkpoint, artifact):
        flags = ("--target", "gguf", "--type", "q4_0", "--overwrite")
        result = run(model, tmp_path / "m.gguf", *flags)
        assert result.exit_code == 0, result.output
        assert "tensors, Q4_0" in result.stdout
        assert (tmp_path / "m.gguf").read_bytes()[:4] == b"GGUF"
    assert "type is 'Q4_K'" in bad(
        artifact, tmp_path / "n.gguf", "--target", "gguf", "--type", "Q4_K"
    )
    assert "ends in .gguf" in bad(artifact, tmp_path / "n", "--target", "gguf")


def test_options_of_other_targets(artifact: Path, tmp_path: Path) -> None:
    for flags, said in (
        (("--type", "bf16"), "--type is for --target hf or gguf, not mnn"),
        (("--target", "hf", "--mla", "absorbed"), "--mla is for --target mnn or android, not hf"),
        (("--target", "gguf", "--bits", 4), "--bits is for --target mnn or android, not gguf"),
        (("--target", "hf", "--no-calibration"), "--no-calibration is for"),
    ):
        result = run(artifact, tmp_path / "f", *flags)
        assert result.exit_code == 2
        assert said in re.sub(r"[\s│]+", " ", result.stderr)
    assert not (tmp_path / "f").exists()
