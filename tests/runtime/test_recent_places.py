"""Caches whose entries have rows for several tokens, or those of the last tokens only.

No op needs to write the entries: a cache and a batch are checked before anything runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from one_op import one_op
from program_dir import random_weights, write_program

from deepmnn.backends.base import Batch, Cache
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.lower import read_program
from deepmnn.backends.cpu.program import encode
from deepmnn.backends.reference import PagedCache
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.graph.caches import CacheEntry

BLOCKS, SIZE, WINDOW = 5, 6, 4
CACHES = {
    "k": CacheEntry(8),
    "entries": CacheEntry(3, ratio=6),
    "recent": CacheEntry(5, window=WINDOW),
    "inputs": CacheEntry(2, window=2, exact=True),
}


def write(directory: Path, caches: dict[str, CacheEntry]) -> Path:
    graph = one_op(lambda b, x: b.silu(x, "y"), 8)
    write_program(graph, random_weights(graph).__getitem__, directory)
    path = directory / "program.bin"
    path.write_bytes(encode(dataclasses.replace(read_program(path.read_bytes()), caches=caches)))
    return directory


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> CpuBackend:
    return CpuBackend(write(tmp_path_factory.mktemp("program"), CACHES), threads=1)


def caches(backend: CpuBackend, dtype: str, recent_blocks: int | None) -> list[Cache]:
    """The engine's and the oracle's."""
    return [
        backend.new_cache(BLOCKS, SIZE, dtype, recent_blocks),
        PagedCache(CACHES, BLOCKS, SIZE, dtype, recent_blocks),
    ]


def test_entries_come_back_as_they_were_written(backend: CpuBackend) -> None:
    assert backend.caches == CACHES


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_a_block_is_its_kept_rows_and_its_recent_ones(backend: CpuBackend, dtype: str) -> None:
    row = {"f32": (32, 12, 20), "bf16": (16, 6, 10), "int8": (12, 8, 12)}[dtype]
    nbytes = SIZE * row[0] + row[1] + SIZE * row[2] + SIZE * 8
    cache = backend.new_cache(BLOCKS, SIZE, dtype)
    assert cache.block_nbytes == nbytes
    assert cache.recent_blocks == BLOCKS


@pytest.mark.parametrize("which", [0, 1])
def test_recent_rows_move_with_their_block(backend: CpuBackend, which: int) -> None:
    cache = caches(backend, "f32", 2)[which]
    data = np.random.default_rng(1).integers(0, 255, cache.block_nbytes).astype(np.uint8)
    kept = SIZE * 8 * 4 + 3 * 4
    rows = np.empty_like(data)
    cache.write_block(1, data)
    cache.read_block(1, rows)
    assert np.array_equal(rows[:kept], data[:kept])
    assert not rows[kept:].any(), "no place, so no recent rows"
    cache.place_recent(1, 1)
    cache.write_block(1, data)
    cache.read_block(1, rows)
    assert np.array_equal(rows, data)
    cache.place_recent(3, 0)
    cache.copy_block(1, 3)
    cache.read_block(3, rows)
    assert np.array_equal(rows, data)
    cache.place_recent(2, 1)  # block 1 has lost it
    cache.read_block(1, rows)
    assert np.array_equal(rows[:kept], data[:kept])
    assert not rows[kept:].any()
    cache.place_recent(3, -1)
    cache.read_block(3, rows)
    assert not rows[kept:].any()


@pytest.mark.parametrize("which", [0, 1])
def test_impossible_places(backend: CpuBackend, which: int) -> None:
    cache = caches(backend, "f32", 2)[which]
    assert cache.recent_blocks == 2
    for block, place in ((-1, 0), (BLOCKS, 0), (0, 2), (0, -2)):
        with pytest.raises(RequestError):
            cache.place_recent(block, place)


@pytest.mark.parametrize(("size", "recent"), [(4, None), (7, None), (6, 6), (6, -1)])
def test_impossible_caches(backend: CpuBackend, size: int, recent: int | None) -> None:
    with pytest.raises(RequestError):
        backend.new_cache(BLOCKS, size, "f32", recent)
    with pytest.raises(RequestError):
        PagedCache(CACHES, BLOCKS, size, "f32", recent)


def batch(history: int, tokens: int) -> Batch:
    """Tokens of one sequence in blocks 0, 1, ..."""
    length = history + tokens
    return Batch(
        ids=np.zeros(tokens, np.int32),
        positions=np.arange(history, length, dtype=np.int32),
        sequence_starts=np.array([0, tokens], np.int32),
        context_lengths=np.array([length], np.int32),
        block_tables=np.arange(-(-length // SIZE), dtype=np.int32)[None],
        logit_rows=np.array([tokens - 1], np.int32),
    )


@pytest.mark.parametrize(
    ("history", "tokens", "placed", "runs"),
    [
        (0, 1, [], False),
        (0, 1, [0], True),
        (0, SIZE + 1, [0], False),
        (0, SIZE + 1, [0, 1], True),
        (2 * SIZE, 1, [2], False),  # reads three rows of block 1
        (2 * SIZE, 1, [1, 2], True),
        (2 * SIZE + WINDOW - 2, 1, [2], False),
        (2 * SIZE + WINDOW - 1, 1, [2], True),
    ],
)
def test_a_step_needs_the_recent_rows_that_it_reads(
    backend: CpuBackend, history: int, tokens: int, placed: list[int], runs: bool
) -> None:
    cache = backend.new_cache(BLOCKS, SIZE, "f32", 3)
    for place, block in enumerate(placed):
        cache.place_recent(block, place)
    if runs:
        assert backend.step(cache, batch(history, tokens)).shape[0] == 1
    else:
        with pytest.raises(RequestError, match="recent rows"):
            backend.step(cache, batch(history, tokens))


@pytest.mark.parametrize(
    "entry",
    [CacheEntry(0), CacheEntry(3, ratio=0), CacheEntry(3, 2, 5), CacheEntry(3, ratio=1 << 21)],
)
def test_entries_that_no_cache_has(tmp_path: Path, entry: CacheEntry) -> None:
    directory = write(tmp_path / "program", {"k": entry})
    with pytest.raises(ArtifactError):
        read_program((directory / "program.bin").read_bytes())
    with pytest.raises(ArtifactError):
        CpuBackend(directory, threads=1)
