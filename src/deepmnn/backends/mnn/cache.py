"""The MNN backend's cache: which token stands in which row."""

from __future__ import annotations

import numpy as np

from deepmnn.backends.base import I32, U8
from deepmnn.errors import RequestError


class MnnCache:
    """Token ids [blocks, block_size] in place of keys and values, which MNN does not hand out."""

    def __init__(self, blocks: int, block_size: int) -> None:
        if blocks < 1 or block_size < 1:
            raise RequestError(f"cache of {blocks} blocks of {block_size} rows", "positive sizes")
        self.blocks, self.block_size = blocks, block_size
        try:
            self._ids = np.zeros((blocks, block_size), np.int32)  # pages come when written to
        except (MemoryError, ValueError) as error:
            raise RequestError(
                f"a cache of {blocks} blocks of {block_size} rows", "one that fits in memory"
            ) from error

    block_nbytes = 0
    recent_blocks = 0

    def place_recent(self, block: int, place: int) -> None:
        """Does nothing: every row is kept."""

    def copy_block(self, source: int, target: int) -> None:
        """Copies one block."""
        for block in (source, target):
            if not 0 <= block < self.blocks:
                raise RequestError(f"cache block {block}", f"a block below {self.blocks}")
        self._ids[target] = self._ids[source]

    def read_block(self, block: int, rows: U8) -> None:
        """Raises RequestError: MNN's keys and values are not here."""
        raise RequestError("rows of MNN's cache", "another backend")

    def write_block(self, block: int, rows: U8) -> None:
        """Raises RequestError, as `read_block`."""
        raise RequestError("rows of MNN's cache", "another backend")

    def append(self, table: I32, length: int, ids: I32) -> I32:
        """Writes a sequence's newest ids; all `length` of them, those in the blocks of `table`."""
        rows = np.arange(length)
        slots = table[rows // self.block_size] * self.block_size + rows % self.block_size
        flat = self._ids.reshape(-1)
        flat[slots[length - len(ids) :]] = ids
        seen: I32 = flat[slots]
        return seen
