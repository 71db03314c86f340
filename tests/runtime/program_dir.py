"""Writes a graph as the CPU engine reads it, without the converter: program.bin and one shard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepmnn.backends.base import F32
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.lower import lower
from deepmnn.backends.cpu.pieces import whole
from deepmnn.graph.draft import Parts
from deepmnn.graph.ir import Graph
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.graph.weights import TensorSource
from deepmnn.quant.layout import unpack
from storage import numpy_bytes

SHARD = "weights.bin"
Read = Callable[[str], F32]


def write_program(
    graph: Graph, read: Read, directory: Path, reuse: bool = True, draft: Graph | None = None
) -> None:
    """graph, with the weights read(name) in their storage formats, as files in `directory`; with
    its draft part.
    """
    locations, parts, offset = {}, [], 0
    both = Parts(graph, draft)
    nodes = [*graph.nodes, *(draft.nodes if draft else ())]
    for name in dict.fromkeys(name for node in nodes for name in node.weights):
        weight = both.weights[name]
        matrix = read(name).reshape(weight.matrix_shape)
        data = numpy_bytes(matrix, weight.format)
        locations[name] = whole(0, offset, data.nbytes)
        parts.append(data)
        offset += data.nbytes
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SHARD).write_bytes(b"".join(part.tobytes() for part in parts))
    plan = plan_memory(graph, reuse)
    second = (draft, plan_memory(draft, reuse)) if draft else None
    (directory / "program.bin").write_bytes(lower(graph, plan, locations, [SHARD], second))


def stored(graph: Graph, read: Read) -> Read:
    """The weights as their storage formats hold them: what a backend's numbers are judged by."""

    def read_stored(name: str) -> F32:
        weight, array = graph.weights[name], read(name)
        rows, cols = weight.matrix_shape
        data = numpy_bytes(array.reshape(rows, cols), weight.format)
        return unpack(data, weight.format, rows, cols).reshape(array.shape)

    return read_stored


def cpu_of(
    graph: Graph, read: Read, drafting: Graph | None = None, **options: object
) -> CpuBackend:
    """A CPU backend of the graph, and of its draft part."""
    with tempfile.TemporaryDirectory() as folder:  # a mapped file outlives its name
        write_program(graph, read, Path(folder), draft=drafting)
        return CpuBackend(folder, **options)  # type: ignore[arg-type]


def cpu(**options: object) -> Callable[[Graph, TensorSource], CpuBackend]:
    """Makes CPU backends with these options, for tests/parity.py."""
    return lambda graph, source: cpu_of(
        graph, lambda name: graph.weights[name].expr.read(source), **options
    )


_TABLES = ("lookup", "hash_route")
"""Ops whose last weight has numbers of experts."""


def random_weights(graph: Graph, seed: int = 0) -> dict[str, F32]:
    """Normal numbers for every weight of a graph, scaled so that activations stay near one."""
    rng = np.random.default_rng(seed)
    tables = {node.weights[-1]: node.attrs["experts"] for node in graph.nodes if node.op in _TABLES}
    return {
        name: rng.integers(0, int(tables[name]), weight.shape).astype(np.float32)
        if name in tables
        else (rng.standard_normal(weight.shape) / np.sqrt(weight.shape[-1] / 2)).astype(np.float32)
        if weight.format != "vector"
        else (1 + 0.3 * rng.standard_normal(weight.shape)).astype(np.float32)
        for name, weight in graph.weights.items()
    }
