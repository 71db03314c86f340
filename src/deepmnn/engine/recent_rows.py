"""Which cache blocks have their recent rows, where a model reads those of the last tokens only.

Entries with a window (graph/caches.py) need rows of the last `window` tokens of a sequence, and of
its current block. Those rows lie in places, of which there are fewer than blocks. A block has one
while a sequence needs it. Afterwards it keeps its place until another block wants it, the block
that was needed last the longest: as long as the last blocks before a border have theirs, a sequence
can go on from that border. So a far rollback, or a shared prefix, ends at such a border, and what
comes after it is run again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from deepmnn.backends.base import Cache
from deepmnn.graph.caches import CacheEntry, block_nbytes, block_size, window

SLACK = 32
"""Tokens that a sequence can be cut by without running any of the others again."""

_IDLE = 8
"""Sequences that have ended, and can be gone on from, for which there are places."""

_MOST_NBYTES = 2 << 30
"""Of all places, unless a step needs more."""


def places(
    caches: Mapping[str, CacheEntry],
    blocks: int,
    dtype: str,
    max_batch_tokens: int,
    max_sequences: int,
) -> int:
    """Places for recent rows in a cache of so many blocks; 0 where no entry has a window."""
    reach = window(caches)
    if not reach:
        return 0
    size = block_size(caches)
    each = _most(reach, size)
    step = each + math.ceil(max_batch_tokens / size)
    affordable = _MOST_NBYTES // block_nbytes(caches, size, dtype)[1]
    wanted = step + each * (max_sequences + _IDLE)
    return min(blocks, max(step, min(wanted, affordable)))


def _most(reach: int, size: int) -> int:
    """Places that a sequence needs at a time, unless it runs many tokens: those of its last rows,
    and of the block that the next token begins.
    """
    return math.ceil((reach + SLACK) / size) + 1


class RecentRows:
    """Hands out the places of a cache.

    Args:
        cache: with `recent_blocks` places.
        reach: the longest window of its entries.
    """

    def __init__(self, cache: Cache, reach: int) -> None:
        self._cache, self._reach = cache, reach
        self._place_of: dict[int, int] = {}
        self._needs: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._free = list(range(cache.recent_blocks))
        for block in range(cache.blocks) if cache.recent_blocks == cache.blocks else ():
            cache.place_recent(block, -1)  # each had its own

    @property
    def free(self) -> int:
        """Places that no sequence needs."""
        return len(self._free) + len(self._idle)

    def most(self, length: int, end: int) -> int:
        """Places that a sequence needs at a time from this length to another, token by token."""
        size = self._cache.block_size
        return min(_most(self._reach, size), -(-end // size) - self._least(length))

    def first(self, length: int) -> int:
        """The first block of a sequence of this length whose recent rows its next token reads."""
        return max(0, length + 1 - self._reach) // self._cache.block_size

    def reachable(self, blocks: Sequence[int], length: int) -> int:
        """The longest length, at most `length`, at which a sequence of these blocks can go on."""
        size = self._cache.block_size
        while length > 0:
            needed = blocks[self.first(length) : -(-length // size)]
            if all(block in self._place_of for block in needed):
                break
            length = (length - 1) // size * size
        return length

    def kept(self, blocks: Sequence[int], length: int) -> range:
        """Which of its blocks a sequence of this length should need: all from some block on."""
        least = self._least(length)
        start = len(blocks)
        while start > least and blocks[start - 1] in self._place_of:
            start -= 1
        return range(start, len(blocks))

    def _least(self, length: int) -> int:
        """The first block whose recent rows a sequence of this length should need.

        So it can be cut by a few tokens, and a draft part can run those of the block that is not
        whole, which wait until then (speculation/mtp.py).
        """
        size = self._cache.block_size
        return self.first(min(max(0, length - SLACK), length // size * size))

    def need(self, block: int) -> None:
        """A sequence needs the block's recent rows: it has a place until `let_go`."""
        self._idle.pop(block, None)
        self._needs[block] = self._needs.get(block, 0) + 1
        if block in self._place_of:
            return
        if self._free:
            place = self._free.pop(0)
        else:
            oldest, _ = self._idle.popitem(last=False)
            place = self._place_of.pop(oldest)
        self._cache.place_recent(block, place)
        self._place_of[block] = place

    def let_go(self, block: int) -> None:
        """Ends a `need`."""
        self._needs[block] -= 1
        if not self._needs[block]:
            del self._needs[block]
            self._idle[block] = None
