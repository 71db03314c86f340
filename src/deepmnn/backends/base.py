"""What every backend offers the engine: one step over a ragged batch, on a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.errors import RequestError
from deepmnn.graph.caches import CacheEntry

I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

Draw = tuple[F32, float, int, float, float, float]
"""One token to be drawn: logits [vocab_size], temperature, top_k, top_p, min_p, u; see
`_core.sample`."""


@dataclass
class Batch:
    """The new tokens of one step, all sequences concatenated, and where their history lies.

    A sequence's context is its history plus its new tokens: context_lengths counts both. Its cache
    row p lies in block `block_tables[s, p // block_size]`, slot `p % block_size`. A sequence brings
    at least one new token. Unused block table entries are -1.
    """

    ids: I32
    """[tokens] token ids."""
    positions: I32
    """[tokens] position of each token in its sequence."""
    sequence_starts: I32
    """[sequences + 1] sequence s owns tokens sequence_starts[s] .. sequence_starts[s + 1]."""
    context_lengths: I32
    """[sequences] rows each sequence sees, new ones included."""
    block_tables: I32
    """[sequences, blocks] cache blocks of each sequence, in order."""
    logit_rows: I32
    """[rows] indices into the tokens whose logits, and other outputs, are wanted."""


class Cache(Protocol):
    """A paged KV cache: for each cache entry of the graph, [blocks, rows of a block, width].

    Recent rows, those of entries with a window (graph/caches.py), lie in places of their own. A
    block needs one while a step reads or writes its recent rows.
    """

    blocks: int
    block_size: int
    recent_blocks: int
    """Places for recent rows; 0 where no entry has a window."""
    block_nbytes: int
    """Of one block of every entry; 0 where its rows cannot be taken out (MNN)."""

    def place_recent(self, block: int, place: int) -> None:
        """Gives a block a place for its recent rows, whatever that holds, and takes it from the
        block that had it; -1: its recent rows are gone.
        """
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block of every entry (before a shared block is written to), recent rows where
        both blocks have a place.
        """
        ...

    def read_block(self, block: int, rows: U8) -> None:
        """Puts one block of every entry into rows [block_nbytes]."""
        ...

    def write_block(self, block: int, rows: U8) -> None:
        """Puts back what `read_block` gave, here or into another block: the same to the bit."""
        ...


class Backend(Protocol):
    """A loaded model. Not thread-safe: one step at a time."""

    vocab_size: int
    outputs: tuple[str, ...]
    """What a step can give, by name; "logits" is one of them."""
    caches: dict[str, CacheEntry]
    """What its KV cache holds, by name."""
    max_sequences: int | None
    """Sequences worth running together (a step takes any number); None: no limit."""
    draft_state: str | None
    """The output that drafts begin with (graph/draft.py); None: the model has no draft part, or was
    loaded without it."""

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> Cache:
        """Allocates an empty cache.

        Args:
            blocks, block_size: of how many tokens; a multiple of `block_multiple`.
            dtype: "f32", "bf16" or "int8".
            recent_blocks: places for recent rows; None: each block has its own.
        """
        ...

    def step(self, cache: Cache, batch: Batch) -> F32:
        """Runs one step, appends to the cache, returns logits [rows, vocab_size]."""
        ...

    def run(self, cache: Cache, batch: Batch) -> dict[str, F32]:
        """Like `step`, but returns every output by name, each [rows, width]."""
        ...

    def draft(self, cache: Cache, batch: Batch, state: F32) -> tuple[F32, F32]:
        """Runs the draft part, appends to its own entries of the cache.

        A token of the batch is a pair: its id, at the position of the token before it, and row t of
        state [tokens, width], which a step gave for that token before it, or an earlier draft.
        The rows of a sequence's context are those pairs: one for each token with a next one.

        Returns logits [rows, vocab_size] of the token after each, and the state [rows, width] that
        the next draft begins with. Raises RequestError where `draft_state` is None.
        """
        ...

    def sample(self, draws: list[Draw]) -> list[int]:
        """The token ids that are drawn. Raises RequestError when logits are no numbers."""
        ...


def no_draft() -> RequestError:
    """The error for a draft of a backend whose `draft_state` is None."""
    return RequestError("a draft of a model without a draft part", "one that is loaded with it")


def sample_in_turn(draws: list[Draw]) -> list[int]:
    """`Backend.sample` by one thread."""
    return [_core.sample(*draw) for draw in draws]


def check_batch(batch: Batch, cache: Cache, vocab_size: int) -> None:
    """Raises RequestError unless every index of the batch lies where it should."""
    tokens, starts = len(batch.ids), batch.sequence_starts
    new = np.diff(starts)
    lengths = batch.context_lengths

    def need(condition: bool, found: str, expected: str) -> None:
        if not condition:
            raise RequestError(found, expected)

    need(len(starts) >= 2 and starts[0] == 0 and starts[-1] == tokens, "starts", f"0 … {tokens}")
    need(bool((new >= 1).all()), "a sequence without new tokens", "at least one")
    need(len(batch.positions) == tokens, f"{len(batch.positions)} positions", f"{tokens}")
    need(
        _within(batch.ids, vocab_size), "a token id outside the vocabulary", f"0 … {vocab_size - 1}"
    )
    need(_within(batch.logit_rows, tokens), "a logit row outside the step", f"below {tokens}")
    need(len(lengths) == len(new), f"{len(lengths)} context lengths", f"{len(new)}")
    need(len(batch.block_tables) == len(new), f"{len(batch.block_tables)} tables", f"{len(new)}")
    need(bool((lengths >= new).all()), "a context shorter than its new tokens", "history + new")
    for table, length in zip(batch.block_tables, lengths, strict=True):
        used = table[: -(-int(length) // cache.block_size)]
        enough = len(used) * cache.block_size >= length
        need(enough, f"{len(used)} blocks for {length} rows", "enough blocks")
        need(_within(used, cache.blocks), "a cache block outside the cache", f"{cache.blocks}")


def _within(indices: I32, limit: int) -> bool:
    return bool(((indices >= 0) & (indices < limit)).all())
