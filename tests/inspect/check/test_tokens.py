"""Faults of tokenizer files, on a converted model and in a folder for MNN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faulty import exported, wrong

from byte_tokenizer import BOS, R1_TEMPLATE, write_tokenizer
from deepmnn.artifact.manifest import MANIFEST
from deepmnn.conversion.convert import convert
from deepmnn.inspect.check.checks import check
from deepmnn.inspect.check.line import Line
from exporters.folders import change_json, reseal
from tiny_artifact import tiny_artifact, write_config

PAD_ID, LETTER_ID = 2, 7


def model(folder: Path, tokenizer: dict[str, Any], **config: Any) -> Path:
    """tiny_artifact's model, with other fields in its files."""
    write_config(folder / "source", **config)
    write_tokenizer(folder / "source", **tokenizer)
    convert(folder / "source", folder / "model", quant="fp32", random_weights=True)
    return folder / "model"


def verdicts(path: Path) -> dict[str, Line]:
    return {line.name: line for line in check(path)}


def test_a_sound_tokenizer_is_not_accused(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path)
    found = verdicts(made)
    assert not [line for line in found.values() if line.verdict == "wrong"]
    names = ("tokenizer round trip", "vocabulary", "BOS", "end of an answer")
    assert all(found[name].verdict == "ok" for name in names)
    assert found["ids and chats against transformers"].verdict == "ok"
    folder = verdicts(exported(made, tmp_path / "mnn"))
    assert not [line for line in folder.values() if line.verdict == "wrong"]
    assert folder["MNN's BOS"].verdict == folder["MNN's end of an answer"].verdict == "ok"


@pytest.mark.parametrize(
    ("eos", "said"), [(LETTER_ID, "ordinary token"), (PAD_ID, "which eos_token_id lacks")]
)
def test_a_wrong_eos_is_found(tmp_path: Path, eos: int, said: str) -> None:
    made = model(tmp_path, {}, eos_token_id=eos)
    found = wrong(made)
    assert set(found) == {"end of an answer"}
    assert said in found["end of an answer"].advice
    assert f"{eos} " in found["end of an answer"].found
    assert set(wrong(exported(made, tmp_path / "mnn"))) == {"end of an answer"}


def test_an_eos_that_mnn_does_not_stop_at_is_found(tmp_path: Path) -> None:
    folder = exported(tiny_artifact(tmp_path), tmp_path / "mnn")
    path = folder / "tokenizer.mtok"
    data = path.read_bytes()
    assert data.startswith(b"430 4\n0 1 0\n1\n")
    path.write_bytes(data.replace(b"\n1\n", b"\n2\n", 1))
    reseal(folder / MANIFEST)
    assert set(wrong(folder)) == {"MNN's end of an answer"}


def test_a_doubled_bos_is_found(tmp_path: Path) -> None:
    """The template writes BOS, and what it calls the first message has one already."""
    template = R1_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}" + BOS)
    assert template != R1_TEMPLATE
    made = model(tmp_path, {"chat_template": template})
    found = wrong(made)
    assert set(found) == {"BOS"}
    assert "a chat with 2" in found["BOS"].found
    assert set(wrong(exported(made, tmp_path / "mnn"))) == {"BOS", "MNN's BOS"}


def test_bos_of_the_template_and_of_mnns_tokenizer_is_found(tmp_path: Path) -> None:
    folder = exported(tiny_artifact(tmp_path), tmp_path / "mnn")
    path = folder / "tokenizer.mtok"
    path.write_bytes(path.read_bytes().replace(b"\n0 1 0\n1\n", b"\n0 1 1\n1 0\n", 1))
    reseal(folder / MANIFEST)
    found = wrong(folder)
    assert set(found) == {"MNN's BOS"}
    assert "1 by the tokenizer, 1 by the template" in found["MNN's BOS"].found


def test_a_tokenizer_of_a_larger_model_is_found(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path)
    change_json(made / "config.json", vocab_size=100)
    reseal(made / MANIFEST)
    assert "vocabulary" in wrong(made)


def test_a_tokenizer_that_loses_letters_is_found(tmp_path: Path) -> None:
    """A decoder that strips what it should not."""
    made = tiny_artifact(tmp_path)
    change_json(made / "tokenizer.json", decoder={"type": "Fuse"})
    reseal(made / MANIFEST)
    found = wrong(made)
    assert "0 of 7" in found["tokenizer round trip"].found


def test_without_a_tokenizer_the_other_checks_run(tmp_path: Path) -> None:
    found = verdicts(tiny_artifact(tmp_path, tokenizer=False))
    assert found["tokenizer round trip"].verdict == "skipped"
    assert "tokenizer.json" in found["tokenizer round trip"].found
    assert found["RoPE base"].verdict == "ok"
    assert not [line for line in found.values() if line.verdict == "wrong"]
