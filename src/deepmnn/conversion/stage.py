"""A stage of a model, run by the CPU engine over many samples, whatever the size of the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.artifact.manifest import PROGRAM
from deepmnn.backends.base import F32, I32, Batch
from deepmnn.backends.cpu.backend import arrays
from deepmnn.backends.cpu.lower import lower
from deepmnn.backends.cpu.pieces import whole
from deepmnn.formats import U8, named
from deepmnn.graph.caches import block_size
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.passes.memory_plan import plan_memory
from deepmnn.graph.weights import TensorSource
from deepmnn.quant.store import store, store_codes
from deepmnn.source.source import Source

_SHARD = "stage.weights"
LEAST_BLOCK = 64
"""Tokens of a cache block of a stage, or somewhat more."""


Stored = Callable[[Weight], U8]
"""The bytes of a weight, in its format."""


def stored_from(source: TensorSource) -> Stored:
    """What a source's tensors are stored as: codes that are kept, or rounded numbers."""
    threads = _core.available_cores()

    def stored(weight: Weight) -> U8:
        is_kept = named(weight.format).is_kept
        codes = weight.expr.codes(source) if is_kept and isinstance(source, Source) else None
        if codes is not None:
            return store_codes(weight, codes, threads)
        return store(weight, weight.expr.read(source), threads)

    return stored


class Stage:
    """A stage (graph/stages.py) with its weights, in a temporary directory of its own.

    Args:
        graph: the stage; weights have the formats in which it is to run.
        stored: their bytes; asked once for each, one at a time.
        tokens: of a step, at most.
        directory: where to put its files.
        threads, isa, mla_form: as of `CpuBackend`.
        kv_dtype: "f32", "bf16" or "int8".
    """

    def __init__(
        self,
        graph: Graph,
        stored: Stored,
        tokens: int,
        directory: Path,
        *,
        threads: int = 0,
        isa: str = "",
        mla_form: str = "auto",
        kv_dtype: str = "f32",
    ) -> None:
        self._graph, self._kv_dtype = graph, kv_dtype
        with tempfile.TemporaryDirectory(dir=directory) as folder:  # mapped files outlive it
            locations, offset = {}, 0
            with open(Path(folder) / _SHARD, "wb") as shard:
                for name in dict.fromkeys(name for node in graph.nodes for name in node.weights):
                    data = stored(graph.weights[name])
                    locations[name] = whole(0, offset, data.nbytes)
                    shard.write(data.data)
                    offset += data.nbytes
            program = lower(graph, plan_memory(graph, reuse=True), locations, [_SHARD])
            (Path(folder) / PROGRAM).write_bytes(program)
            self._model = _core.Model(folder, threads, isa)
        self._model.set_mla_form(mla_form)
        self._block_size = block_size(graph.caches, LEAST_BLOCK)
        self._blocks = -(-tokens // self._block_size)
        self._cache = self._model.new_cache(self._blocks, self._block_size, kv_dtype)

    @property
    def inputs(self) -> list[str]:
        """What `run` takes besides the samples."""
        return [name for name in self._graph.inputs if self._graph.values[name].dtype == "f32"]

    def run(self, samples: Sequence[I32], inputs: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """Every output of the stage, [tokens of all samples, width] each.

        Args:
            samples: token ids; each is a sequence of its own, from its first position on.
            inputs: the values that earlier stages gave, for the same samples.
        """
        batch, blocks = fresh_batch(samples, self._block_size)
        if blocks > self._blocks:  # samples do not share blocks: short ones take more than tokens
            self._blocks = blocks
            self._cache = self._model.new_cache(blocks, self._block_size, self._kv_dtype)
        return self._model.run(self._cache, *arrays(batch), dict(inputs))


def fresh_batch(samples: Sequence[I32], block_size: int) -> tuple[Batch, int]:
    """Samples as one step, each a sequence without a history, every token's row wanted; and how
    many cache blocks they take.
    """
    lengths = [len(sample) for sample in samples]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tables = np.full((len(samples), -(-max(lengths) // block_size)), -1, np.int32)
    first = 0
    for table, length in zip(tables, lengths, strict=True):
        blocks = -(-length // block_size)
        table[:blocks] = np.arange(first, first + blocks)
        first += blocks
    batch = Batch(
        ids=np.concatenate(samples).astype(np.int32),
        positions=np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        sequence_starts=starts,
        context_lengths=np.array(lengths, np.int32),
        block_tables=tables,
        logit_rows=np.arange(starts[-1], dtype=np.int32),
    )
    return batch, first
