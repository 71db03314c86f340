"""Cold starts: which files, whether they are really out of the page cache, and all of them read."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers import cold, worker
from bench.peers.engine import Cold


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory of files that were just read."""
    (tmp_path / "model" / "shards").mkdir(parents=True)
    for name, size in (("config.json", 100), ("shards/one", cold.CHUNK + 5000), ("empty", 0)):
        (tmp_path / "model" / name).write_bytes(os.urandom(size))
    worker.read_files(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_is_a_file_or_all_files_of_a_directory(model: Path) -> None:
    names = [path.relative_to(model).as_posix() for path in cold.files_of(model)]
    assert names == ["config.json", "empty", "shards/one"]
    assert cold.files_of(model / "empty") == [model / "empty"]
    assert cold.nbytes(cold.files_of(model)) == 100 + cold.CHUNK + 5000


def test_dropped_files_are_gone_or_it_is_told(model: Path) -> None:
    files = cold.files_of(model)
    assert cold.resident(files) > 0.9
    told = cold.drop(files)
    if cold.resident(files) > cold.MOST_RESIDENT:  # in memory alone, as in tmpfs
        assert told.endswith("of its files stay in the page cache")
    else:
        assert told == ""


def test_a_page_cache_that_keeps_files_or_tells_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold, "resident", lambda files: 0.25)
    assert cold.drop(cold.files_of(model)) == "25% of its files stay in the page cache"

    def refuse(files: Sequence[Path]) -> float:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cold, "resident", refuse)
    told = "the page cache cannot be inspected: Operation not permitted"
    assert cold.drop(cold.files_of(model)) == told
    monkeypatch.delattr(os, "posix_fadvise")
    assert cold.drop([]) == "this system cannot drop files from its page cache"


def test_the_disk_reads_every_byte_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cold.files_of(model)
    found = cold.read_seconds(files)
    assert found is None or found > 0  # None on file systems without O_DIRECT
    chunks = list[tuple[str, int]]()
    monkeypatch.setattr(cold, "_read_direct", lambda c: chunks.append((c[0].name, c[1])))
    assert cold.read_seconds(files) is not None
    assert sorted(chunks) == [("config.json", 0), ("one", 0), ("one", cold.CHUNK)]


def test_a_disk_that_cannot_be_read_directly_has_no_time(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    assert cold.read_seconds(cold.files_of(model)) is None


class Pretender:
    """An engine that notes in which order it is used."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def version(self, source: Path | None) -> str:
        self.notes.append("version")
        return "1"

    def load(self, model: Path, threads: int, source: Path | None) -> Pretender:
        self.notes.append(f"load with {threads}")
        return self

    def reserve(self, batch: int, tokens: int) -> None:
        self.notes.append(f"reserve {batch} × {tokens}")

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.notes.append(f"start {[len(ids) for ids in prompts]}")


def test_a_cold_start_drops_then_imports_then_loads(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = list[str]()
    monkeypatch.setattr(worker, "engine", lambda name: Pretender(notes))
    monkeypatch.setattr(worker, "drop", lambda files: notes.append(f"drop {len(files)}"))
    monkeypatch.setattr(worker, "read_seconds", lambda files: 0.125)
    request = {"model": str(model), "threads": 3, "source": None}
    found = Cold(**worker.cold("any", request))
    assert found.seconds is not None
    assert (found.disk_seconds, found.missing) == (0.125, "")
    assert found.nbytes == cold.nbytes(cold.files_of(model))
    assert notes == ["drop 3", "version", "load with 3", "reserve 1 × 9", "start [8]"]


def test_no_cold_start_where_files_stay(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "drop", lambda files: "7% of its files stay")
    request = {"model": str(model), "threads": 3, "source": None}
    found = Cold(**worker.cold("no engine is asked", request))
    assert (found.seconds, found.missing) == (None, "7% of its files stay")
