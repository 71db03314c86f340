from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deepmnn.conversion import bundled
from deepmnn.errors import CheckpointError, StorageError


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled checkpoint that may be changed, and an empty cache."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(bundled.CHECKPOINT, copy)
    monkeypatch.setattr(bundled, "CHECKPOINT", copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return copy


def test_it_is_converted_once(checkpoint: Path) -> None:
    calls: list[int] = []
    path = bundled.bundled_model("w8", lambda *_: calls.append(1))
    assert path.parent == bundled.cache_directory()
    assert calls
    count = len(calls)
    assert bundled.bundled_model("w8", lambda *_: calls.append(1)) == path
    assert len(calls) == count
    assert bundled.bundled_model("w4") != path


def test_a_changed_checkpoint_or_a_damaged_copy_is_converted_again(checkpoint: Path) -> None:
    path = bundled.bundled_model("w8")
    shard = next(path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-64])
    calls: list[int] = []
    assert bundled.bundled_model("w8", lambda *_: calls.append(1)) == path
    assert calls
    (checkpoint / "generation_config.json").write_text("{}")
    assert bundled.bundled_model("w8") != path


def test_without_the_model_there_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "CHECKPOINT", tmp_path)
    with pytest.raises(CheckpointError, match="Install"):
        bundled.bundled_model()


def test_a_cache_that_cannot_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / ("n" * 300)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        with pytest.raises(StorageError, match="Set XDG_CACHE_HOME"):
            bundled.bundled_model()

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StorageError, match="Set XDG_CACHE_HOME"):
        bundled.bundled_model()


def test_the_cache_is_in_the_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert bundled.cache_directory() == Path.home() / ".cache" / "deepmnn"
