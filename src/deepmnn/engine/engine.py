"""The engine: many sequences, one model, one step at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as List

import numpy as np

from deepmnn.backends.base import F32, Backend, Batch
from deepmnn.engine.kv_cache import BlockManager, BlockTable
from deepmnn.engine.scheduler import Chunk, Scheduler
from deepmnn.engine.sequence import Sequence
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream

BLOCK_SIZE = 32
"""Tokens per cache block."""


class Engine:
    """Runs sequences on a backend. Not thread-safe.

    Args:
        backend: the model.
        cache_tokens: rows of the KV cache, shared by all sequences; rounded up to whole blocks.
        context_length: the longest sequence the model takes (max_position_embeddings).
        max_batch_tokens: tokens of one step; a longer prompt is prefilled in chunks.
        max_sequences: sequences that run at the same time, as far as the backend runs as many.
        kv_dtype: "f32", "bf16" or "int8".
        eos_ids: tokens that end an answer.
    """

    def __init__(
        self,
        backend: Backend,
        cache_tokens: int,
        context_length: int,
        *,
        max_batch_tokens: int = 512,
        max_sequences: int = 64,
        kv_dtype: str = "f32",
        eos_ids: Iterable[int] = (),
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.backend = backend
        self.cache = backend.new_cache(-(-cache_tokens // block_size), block_size, kv_dtype)
        self.manager = BlockManager(self.cache)
        together = min(max_sequences, backend.max_sequences or max_sequences)
        self.scheduler = Scheduler(self.manager, max_batch_tokens, together)
        self.context_length = min(context_length, self.manager.capacity)
        self._cache_is_short = self.context_length < context_length
        self.eos_ids = frozenset(eos_ids)

    def submit(
        self, ids: List[int], params: SamplingParams, output: TextStream | None = None
    ) -> Sequence:
        """Queues a request. Raises RequestError or ContextLengthError before any work is done."""
        limit = self.check(ids, params)
        eos_ids, prompt = self.eos_ids, [int(token) for token in ids]
        sequence = Sequence(prompt, params=params, limit=limit, eos_ids=eos_ids, output=output)
        self.scheduler.add(sequence)
        return sequence

    def check(self, ids: List[int], params: SamplingParams) -> int:
        """The most tokens prompt and answer may have together; raises as `submit` does."""
        self.check_ids(ids)
        room = self.context_length - len(ids)
        wanted = params.max_tokens or 1
        if wanted > room:
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens and the answer may have {wanted}",
                f"at most {self.context_length} together",
                "Shorten the prompt or lower max_tokens"
                + (", or enlarge cache_tokens (--cache-tokens)." if self._cache_is_short else "."),
            )
        return len(ids) + (params.max_tokens or room)

    def step(self) -> list[Sequence]:
        """Runs one step and returns the sequences that got a token."""
        chunks = self.scheduler.schedule()
        if not chunks:
            self._refuse()
            return []
        try:
            logits = self.forward(chunks)
            tables = [chunk.table for chunk in chunks if not chunk.table.pending]
            ready = [table for table in tables if isinstance(table, Sequence)]
            draws = [sequence.draw(row) for sequence, row in zip(ready, logits, strict=True)]
            for sequence, token in zip(ready, self.backend.sample(draws), strict=True):
                sequence.accept(token)
        except BaseException:
            for chunk in chunks:
                if isinstance(chunk.table, Sequence):
                    self.cancel(chunk.table)
            raise
        for sequence in ready:
            if sequence.finish_reason:
                self.scheduler.remove(sequence)
        return ready

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence early; nothing happens when it has ended."""
        if sequence.finish_reason is None:
            sequence.finish("cancelled")
        self.scheduler.remove(sequence)

    def forward(self, chunks: List[Chunk], *, all_rows: bool = False) -> F32:
        """Runs chunks whose cache rows are reserved; logits [rows, vocab_size].

        Rows are every chunk's tokens (all_rows), or the last token of every chunk that leaves
        nothing pending.
        """
        logits = self.backend.step(self.cache, make_batch(chunks, all_rows))
        for chunk in chunks:
            self.manager.commit(chunk.table, chunk.count)
        return logits

    def run_pending(self, tables: List[BlockTable]) -> None:
        """Runs every pending token of sequences that are driven from outside, logits unread.

        Fills each step as the scheduler would. The tables' rows are the caller's to free
        (`manager.free`). Raises ContextLengthError when the cache is full.
        """
        while any(table.pending for table in tables):
            budget, chunks = self.scheduler.max_batch_tokens, []
            for table in tables:
                count = min(table.pending, budget)
                if count:
                    self.manager.append(table, count)
                    chunks.append(Chunk(table, count))
                    budget -= count
            self.forward(chunks)

    def check_ids(self, ids: List[int]) -> None:
        """Raises RequestError unless ids are tokens of this model, at least one."""
        try:
            given = np.asarray(ids)
        except ValueError:  # rows of different lengths
            given = np.empty(())
        if given.shape == (0,):
            raise RequestError("the prompt is empty", "at least one token")
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise RequestError(f"the token ids are {ids!r:.80}", "a flat list of integers")
        vocab = self.backend.vocab_size
        if given.min() < 0 or given.max() >= vocab:
            wrong = given[(given < 0) | (given >= vocab)][0]
            raise RequestError(
                f"token id {wrong} is outside the vocabulary",
                f"0 to {vocab - 1}",
                "Check that the tokenizer belongs to this model.",
            )

    def _refuse(self) -> None:
        """Nothing can run: if something wants to, the cache is held by open sessions."""
        stuck = [*self.scheduler.running, *self.scheduler.waiting]
        if not stuck:
            return
        for sequence in stuck:
            self.cancel(sequence)
        raise ContextLengthError(
            f"the KV cache has {self.manager.free_blocks} free blocks, the rest is in use",
            "room for the next tokens",
            "Close sessions, or load the model with a larger cache_tokens.",
        )


def make_batch(chunks: List[Chunk], all_rows: bool = False) -> Batch:
    """The descriptor of one step; see backends/base.py.

    Plain lists, and one array that all fields are views of: a decode step is short, and a numpy
    call costs more than its few numbers.
    """
    ids: list[int] = []
    positions: list[int] = []
    contexts: list[int] = []
    tables: list[int] = []
    rows: list[int] = []
    starts = [0]
    width = max([len(chunk.table.blocks) for chunk in chunks])
    for chunk in chunks:
        table = chunk.table
        end = table.length + chunk.count
        ids += table.ids[table.length : end]
        positions += range(table.length, end)
        contexts.append(end)
        tables += table.blocks
        tables += [-1] * (width - len(table.blocks))
        if all_rows:
            rows += range(starts[-1], len(ids))
        elif end == len(table.ids):
            rows.append(len(ids) - 1)
        starts.append(len(ids))
    numbers = array("i", ids + positions + starts + contexts + tables + rows)
    views, end = np.frombuffer(numbers, np.int32), 0
    fields = []
    for part in (ids, positions, starts, contexts, tables, rows):
        begin, end = end, end + len(part)
        fields.append(views[begin:end])
    batch = Batch(*fields)
    batch.block_tables = batch.block_tables.reshape(-1, width)
    return batch
