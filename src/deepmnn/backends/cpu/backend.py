"""The CPU backend: a converted model run by the C++ core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.backends.base import F32, I32, Batch, Cache, Draw, no_draft
from deepmnn.errors import RequestError
from deepmnn.graph.caches import CacheEntry

T = TypeVar("T")


class CpuBackend:
    """A loaded model; see backends/base.py for the protocol.

    Args:
        directory: a converted model: program.bin and the shards it names.
        threads: worker threads; 0: one for each physical core this process may use.
        isa: "scalar", "avx2" or "avx512"; "": the best of this machine (or DEEPMNN_ISA).
        mla_form: how `mla_attention` computes: "absorbed", "expanded", or "auto": whichever takes
            fewer operations for each sequence. Both give the same result but for rounding.
        numa: on a machine with several memory nodes "distribute" or "isolate" (docs/numa.md).
        memory: bytes that weights may take; what does not fit is read while the model runs. 0: all
            of them are mapped.
        working: bytes that the ops of a step need at most, if that is known: no more is ever held.
        draft: with the draft part of a model that has one, which takes memory for its weights and
            its entries of the cache; not where weights are read while the model runs.

    Raises:
        ArtifactError: the directory is damaged or of another version.
        RequestError: threads, isa, mla_form or numa are impossible, the system cannot place
            memory, or `memory` is too little.
    """

    max_sequences: int | None = None

    def __init__(
        self,
        directory: str | Path,
        threads: int = 0,
        isa: str = "",
        mla_form: str = "auto",
        numa: str = "off",
        memory: int = 0,
        working: int = 0,
        draft: bool = True,
    ) -> None:
        self.model = _core.Model(directory, threads, isa, numa, memory=memory, draft=draft)
        self.model.set_mla_form(mla_form)
        if working:
            self.model.reserve(working)
        self.vocab_size = self.model.vocab_size
        self.outputs = tuple(self.model.outputs)
        self.caches = {name: CacheEntry(*entry) for name, entry in self.model.caches.items()}
        self.draft_state = self.model.draft_state

    @property
    def numa(self) -> str:
        """The mode in force: "off" on a machine with one memory node."""
        return self.model.numa

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> Cache:
        """Allocates an empty cache; see `Backend.new_cache`.

        Raises RequestError for impossible sizes and for more than the memory available.
        """
        return self.model.new_cache(blocks, block_size, dtype, recent_blocks)

    def step(self, cache: Cache, batch: Batch) -> F32:
        """Runs one step, appends to the cache, returns logits [rows, vocab_size].

        Raises RequestError, before anything is computed, when the batch does not fit the model or
        the cache.
        """
        return _call(self.model.step, cache, batch)

    def run(self, cache: Cache, batch: Batch) -> dict[str, F32]:
        """Like `step`, but returns every output by name, each [rows, width]."""
        return _call(self.model.run, cache, batch)

    def draft(self, cache: Cache, batch: Batch, state: F32) -> tuple[F32, F32]:
        """Runs the draft part: logits [rows, vocab_size] and the next state [rows, width].

        Raises RequestError as `step`, and without a draft part.
        """
        if self.draft_state is None:
            raise no_draft()
        given = np.asarray(state)
        if given.ndim != 2 or not np.issubdtype(given.dtype, np.floating):
            raise RequestError(
                f"state is {given.dtype} with {given.ndim} dimensions", "float32, [tokens, width]"
            )
        rows = np.ascontiguousarray(given, np.float32)
        return _call(self.model.draft, cache, batch, rows)

    def sample(self, draws: list[Draw]) -> list[int]:
        """The token ids that are drawn, by all threads.

        Raises RequestError when logits are no numbers.
        """
        return self.model.sample(draws)


def _call(core: Callable[..., T], cache: Cache, batch: Batch, *more: F32) -> T:
    """core, a step of the model, on the batch and what it takes besides."""
    if not isinstance(cache, _core.KvCache):
        raise RequestError(f"the cache is a {type(cache).__name__}", "one made by new_cache")
    try:  # the core converts nothing, so that the engine's own arrays go straight in
        return core(cache, *arrays(batch), *more)
    except TypeError:
        return core(cache, *arrays(_converted(batch)), *more)


def arrays(batch: Batch) -> tuple[I32, I32, I32, I32, I32, I32]:
    """In the order in which the core takes them."""
    return (
        batch.ids,
        batch.positions,
        batch.sequence_starts,
        batch.context_lengths,
        batch.block_tables,
        batch.logit_rows,
    )


def _converted(batch: Batch) -> Batch:
    """The batch as the core takes it. Raises RequestError."""
    return Batch(
        ids=_int32("ids", batch.ids, 1),
        positions=_int32("positions", batch.positions, 1),
        sequence_starts=_int32("sequence_starts", batch.sequence_starts, 1),
        context_lengths=_int32("context_lengths", batch.context_lengths, 1),
        block_tables=_int32("block_tables", batch.block_tables, 2),
        logit_rows=_int32("logit_rows", batch.logit_rows, 1),
    )


def _int32(name: str, array: NDArray[np.integer], ndim: int) -> I32:
    """The array as the core takes it: contiguous int32. Raises RequestError."""
    given = np.asarray(array)
    if given.ndim != ndim or (given.size and not np.issubdtype(given.dtype, np.integer)):
        raise RequestError(
            f"{name} is {given.dtype} with {given.ndim} dimensions", f"integers, {ndim} dimensions"
        )
    limits = np.iinfo(np.int32)
    if given.size and (given.min() < limits.min or given.max() > limits.max):
        raise RequestError(f"{name} holds numbers beyond 32 bits", "int32")
    return np.ascontiguousarray(given, np.int32)
