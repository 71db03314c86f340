"""What every backend offers the engine: one step over a ragged batch, on a paged KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


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
    """[rows] indices into the tokens whose logits are wanted."""


class Cache(Protocol):
    """A paged KV cache: for each cache entry of the graph, [blocks, block_size, width]."""

    blocks: int
    block_size: int

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block of every entry (before a shared block is written to)."""
        ...


class Backend(Protocol):
    """A loaded model. Not thread-safe: one step at a time."""

    vocab_size: int

    def new_cache(self, blocks: int, block_size: int, dtype: str = "f32") -> Cache:
        """Allocates an empty cache. dtype: "f32" or "bf16"."""
        ...

    def step(self, cache: Cache, batch: Batch) -> F32:
        """Runs one step, appends to the cache, returns logits [rows, vocab_size]."""
        ...
