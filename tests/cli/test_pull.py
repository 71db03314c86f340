"""deepmnn pull: which of a repository's files it asks the hub for."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from deepmnn.cli import app
from deepmnn.cli.pull import download
from deepmnn.errors import CheckpointError, StorageError

SMALL = {"config.json", "tokenizer.json", "chat_template.jinja", "tokenizer.model", "merges.txt"}
OTHERS = {"README.md", "modeling_deepseek.py", "figures/benchmark.jpg", "flax_model.msgpack"}
SAFETENSORS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
INDEX = {"model.safetensors.index.json"}
TORCH = {"pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"}
NOT_WEIGHTS = {"training_args.bin", "optimizer.bin"}


class Hub:
    """A hub of one repository: fetches what the patterns ask for, and remembers it."""

    def __init__(self, files: set[str], directory: Path) -> None:
        self.files, self.directory = files, directory
        self.asked: list[dict[str, Any]] = []

    def snapshot_download(self, repo: str, **options: Any) -> str:
        self.asked.append({"repo": repo, **options})
        place = Path(options["local_dir"] or self.directory)
        for name in self.files:
            if any(fnmatch(name, pattern) for pattern in options["allow_patterns"]):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(b"x")
        place.mkdir(parents=True, exist_ok=True)
        return str(place)


def hub_of(files: set[str], path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(files, path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def found(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("weights", "fetched", "calls"),
    [
        (SAFETENSORS | INDEX, SAFETENSORS | INDEX, 1),
        (SAFETENSORS | INDEX | TORCH, SAFETENSORS | INDEX | {"pytorch_model.bin.index.json"}, 1),
        (TORCH, TORCH, 2),
        ({"pytorch_model.bin"}, {"pytorch_model.bin"}, 2),
        (set(), set(), 2),
    ],
)
def test_weights_come_in_one_format(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: set[str],
    fetched: set[str],
    calls: int,
) -> None:
    hub = hub_of(SMALL | OTHERS | NOT_WEIGHTS | weights, tmp_path / "cache", monkeypatch)
    assert download("owner/name") == tmp_path / "cache"
    assert found(tmp_path / "cache") == SMALL | fetched
    assert len(hub.asked) == calls


def test_revision_and_directory_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_of(SMALL | TORCH, tmp_path / "cache", monkeypatch)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["pull", "owner/name", str(out), "--revision", "abc"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\nnext: deepmnn convert {out} OUT\n"
    assert found(out) == SMALL | TORCH
    assert len(hub.asked) == 2
    for asked in hub.asked:
        assert (asked["repo"], asked["revision"], asked["local_dir"]) == ("owner/name", "abc", out)


@pytest.mark.parametrize(
    ("fault", "kind", "match"),
    [
        (ConnectionError("no route\nto host"), CheckpointError, "no route; expected a network"),
        (OSError(28, "No space left on device"), StorageError, "No space left"),
        (ValueError("odd"), CheckpointError, "ValueError: odd"),
    ],
)
@pytest.mark.parametrize("call", [1, 2])
def test_a_failure_of_either_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    kind: type[Exception],
    match: str,
    call: int,
) -> None:
    hub = hub_of(SMALL | TORCH, tmp_path, monkeypatch)

    def failing(repo: str, **options: Any) -> str:
        if len(hub.asked) + 1 == call:
            raise fault
        return hub.snapshot_download(repo, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(kind, match=match):
        download("owner/name")
