"""A tokenizer that is not in tokenizer.json is refused at convert; a model without any converts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepmnn.conversion.convert import convert, plan_conversion
from deepmnn.errors import CheckpointError
from tiny_models import tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint("llama", 0, tmp_path / "hf").path


@pytest.mark.parametrize(
    "names",
    [
        ["tokenizer.model"],
        ["tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"],
        ["vocab.json", "merges.txt"],
        ["merges.txt"],
        ["tiktoken.model"],
        ["qwen.tiktoken", "tokenizer_config.json"],
        ["tekken.json"],
    ],
    ids=lambda names: names[0],
)
def test_other_forms_are_refused(checkpoint: Path, names: list[str]) -> None:
    for name in names:
        (checkpoint / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{names[0]}.*AutoTokenizer.*save_pretrained"):
        convert(checkpoint, checkpoint / "out")
    with pytest.raises(CheckpointError, match="AutoTokenizer"):
        plan_conversion(checkpoint)
    assert not (checkpoint / "out").exists()
    (checkpoint / "tokenizer.json").write_text('{"a": 1}')
    assert (convert(checkpoint, checkpoint / "out").path / "tokenizer.json").exists()


@pytest.mark.parametrize("names", [[], ["generation_config.json"], ["tokenizer_config.json"]])
def test_no_tokenizer_at_all(checkpoint: Path, names: list[str]) -> None:
    for name in names:
        (checkpoint / name).write_text("{}")
    path = convert(checkpoint, checkpoint / "out").path
    assert all((path / name).read_text() == "{}" for name in names)
    assert not (path / "tokenizer.json").exists()


def test_random_weights_need_no_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.model").write_text("")
    assert plan_conversion(checkpoint, random_weights=True).nbytes > 0


def test_the_files_are_those_that_were_planned(checkpoint: Path) -> None:
    """Read once: what changes afterwards is of another plan."""
    (checkpoint / "generation_config.json").write_text('{"top_k": 5}')
    plan = plan_conversion(checkpoint)
    config = (checkpoint / "config.json").read_bytes()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "generation_config.json").write_text("{}")
    files = plan.source.side_files()
    assert files == {"config.json": config, "generation_config.json": b'{"top_k": 5}'}
