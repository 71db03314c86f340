"""Weights in several pieces, in the engine: mapped in order, on nodes copied, cut ones refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_op import VOCAB, one_op
from program_dir import SHARD, random_weights, write_program
from test_numa import backend_of, fake, real_node

from deepmnn import _core
from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.lower import lower
from deepmnn.backends.cpu.pieces import PAGE, ZEROS, Piece, Pieces
from deepmnn.backends.cpu.program import encode, read_program
from deepmnn.errors import ArtifactError, RequestError
from deepmnn.graph.ir import Graph
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.inspect.profile.system import resident
from parity import prompts_for, run_schedule

WIDTH = 128
ROWS = 1024  # [1024, 128] in float32: 128 pages
LENGTHS, STEPS = [9, 4], [(6, 4), (3, 0)]


def graph() -> Graph:
    """Two equal matrices with a run of zeros, and one of zeros alone."""

    def build(b: Any, x: str) -> str:
        y = b.add(b.linear(x, "one", ROWS), b.linear(x, "same", ROWS), "sum")
        return b.add(b.linear(y, "down", WIDTH), b.linear(x, "zeros", WIDTH), "all")

    return one_op(build, WIDTH)


def write(directory: Path) -> None:
    """The same model twice: `plain`, and in pieces of a file whose pages are mixed."""
    made = graph()
    weights = random_weights(made)
    weights["one.weight"][256:512] = 0
    weights["same.weight"][:] = weights["one.weight"]
    weights["zeros.weight"][:] = 0
    write_program(made, weights.__getitem__, directory / "plain")
    program = read_program((directory / "plain" / "program.bin").read_bytes())
    data = (directory / "plain" / SHARD).read_bytes()
    file, placed = bytearray(b"\xff" * PAGE), []
    for weight in program.weights:
        (piece,) = weight.pieces
        here = data[piece.offset : piece.offset + piece.nbytes]
        pieces: Pieces
        if weight.name == "zeros.weight":
            pieces = (Piece(ZEROS, 0, piece.nbytes),)
        elif weight.name == "same.weight":
            pieces = placed[-1].pieces
        elif weight.name == "one.weight":
            size = piece.nbytes // 4  # the last quarter lies before the first one
            begin = len(file)
            file += here[3 * size :] + here[:size] + b"\xff" * PAGE + here[2 * size : 3 * size]
            pieces = (
                Piece(0, begin + size, size),
                Piece(ZEROS, 0, size),
                Piece(0, begin + 2 * size + PAGE, size),
                Piece(0, begin, size),
            )
        else:
            pieces = (Piece(0, len(file), piece.nbytes),)
            file += here + b"\xff" * (-len(here) % PAGE)
        placed.append(dataclasses.replace(weight, pieces=pieces))
    (directory / "pieces").mkdir()
    (directory / "pieces" / SHARD).write_bytes(file)
    changed = dataclasses.replace(program, weights=tuple(placed))
    (directory / "pieces" / "program.bin").write_bytes(encode(changed))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    write(folder)
    return folder


def logits(backend: CpuBackend) -> F32:
    return np.concatenate(run_schedule(backend, prompts_for(LENGTHS, VOCAB), STEPS))


def test_pieces_are_the_weight(directory: Path) -> None:
    want = logits(CpuBackend(directory / "plain", threads=2))
    assert np.abs(want).max() > 0.1
    assert np.array_equal(logits(CpuBackend(directory / "pieces", threads=2)), want)


@pytest.mark.parametrize("mode", ["distribute", "isolate"])
def test_on_memory_nodes(directory: Path, tmp_path: Path, mode: str) -> None:
    node, processors = real_node()
    root = fake(tmp_path, f"{node},{node}", **{f"node{node}": processors})
    try:
        backend = backend_of(directory / "pieces", mode, root)
    except RequestError as error:
        assert "mbind" in str(error)  # noqa: PT017  # a kernel or a container without it
        pytest.skip("memory cannot be placed here")
    want = logits(CpuBackend(directory / "plain", threads=2))
    assert np.array_equal(logits(backend), want)


@pytest.mark.parametrize("cut", ["first", "middle", "last"])
def test_a_file_that_is_cut(directory: Path, tmp_path: Path, cut: str) -> None:
    path = tmp_path / SHARD
    (tmp_path / "program.bin").write_bytes((directory / "pieces" / "program.bin").read_bytes())
    path.write_bytes((directory / "pieces" / SHARD).read_bytes())
    size = path.stat().st_size
    backend = CpuBackend(tmp_path, threads=2)
    before = logits(backend)
    os.truncate(path, {"first": PAGE, "middle": size // 2, "last": size - 2 * PAGE}[cut])
    for _ in range(2):
        with pytest.raises(ArtifactError, match="cut short"):
            logits(backend)
    path.write_bytes((directory / "pieces" / SHARD).read_bytes())
    assert np.array_equal(logits(CpuBackend(tmp_path, threads=2)), before)


def test_pieces_beyond_their_file(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "program.bin").write_bytes((directory / "pieces" / "program.bin").read_bytes())
    whole = (directory / "pieces" / SHARD).read_bytes()
    for size in (0, PAGE, len(whole) // 2, len(whole) - PAGE):
        (tmp_path / SHARD).write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match="complete file"):
            _core.Model(tmp_path, 1)


def test_zeros_take_no_memory(tmp_path: Path) -> None:
    """All 64 MB of a matrix are read."""
    rows = 1 << 17
    made = one_op(lambda b, x: b.linear(b.linear(x, "up", rows), "down", WIDTH), WIDTH)
    locations: dict[str, Pieces] = {}
    for name in dict.fromkeys(name for node in made.nodes for name in node.weights):
        locations[name] = (Piece(ZEROS, 0, made.weights[name].nbytes),)
    plan = plan_memory(made, reuse=True)
    (tmp_path / "program.bin").write_bytes(lower(made, plan, locations, []))
    backend = CpuBackend(tmp_path, threads=1)
    before, _ = resident()
    assert not logits(backend).any()
    after, _ = resident()
    assert after - before < 40 << 20  # activations of 6 tokens and more take 7
