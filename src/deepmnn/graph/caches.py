"""What a KV cache holds: its entries, the rows of each, and how many tokens a row is for.

Most entries have a row for every token, and keep all of them. A *compressed* entry has one row for
`ratio` tokens. A *recent* entry has a row for every token, of which only the last `window` are
read: earlier ones need not be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_BLOCK_SIZE = 32
"""Tokens of a cache block, unless somebody wants more, or its rows are for more."""


@dataclass(frozen=True)
class CacheEntry:
    """One entry of a KV cache.

    Attributes:
        width: elements of a row.
        ratio: tokens for which there is one row.
        window: how many of the last tokens' rows are read, a new token's own included; 0: all.
        exact: rows are float32, whatever type the cache has.
    """

    width: int
    ratio: int = 1
    window: int = 0
    exact: bool = False


def block_multiple(caches: Mapping[str, CacheEntry]) -> int:
    """What divides the tokens of a cache block, so that it has whole rows of every entry."""
    return math.lcm(*(entry.ratio for entry in caches.values()))


def block_size(caches: Mapping[str, CacheEntry], least: int = LEAST_BLOCK_SIZE) -> int:
    """Tokens of a block of such a cache, `least` or somewhat more."""
    multiple = block_multiple(caches)
    return multiple * math.ceil(least / multiple)


def window(caches: Mapping[str, CacheEntry]) -> int:
    """How many of the last tokens' rows recent entries keep at least; 0: there are none."""
    return max((entry.window for entry in caches.values()), default=0)


def kept_width(caches: Mapping[str, CacheEntry]) -> int:
    """Elements that are kept for each token, rounded up; without recent entries."""
    kept = (entry.width / entry.ratio for entry in caches.values() if not entry.window)
    return math.ceil(sum(kept))


def row_nbytes(entry: CacheEntry) -> dict[str, int]:
    """Type of the cache → bytes of a row (docs/layouts.md).

    int8 rows have a scale for each 64 columns.
    """
    width = entry.width
    if entry.exact:
        return dict.fromkeys(("f32", "bf16", "int8"), 4 * width)
    int8 = -(-width // 4) * 4 + 4 * -(-width // 64)
    return {"f32": 4 * width, "bf16": 2 * width, "int8": int8}


def block_nbytes(caches: Mapping[str, CacheEntry], block_size: int, dtype: str) -> tuple[int, int]:
    """Bytes of a block of so many tokens: of what is kept, and of recent rows."""
    kept = recent = 0
    for entry in caches.values():
        nbytes = block_size // entry.ratio * row_nbytes(entry)[dtype]
        if entry.window:
            recent += nbytes
        else:
            kept += nbytes
    return kept, recent
