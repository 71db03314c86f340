"""How fast the disk gives large blocks, past the page cache."""

from __future__ import annotations

import mmap
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

BLOCK = 4 << 20
"""Bytes of one read."""

DEPTHS = (1, 2, 3, 4)
"""Reads at the same time."""

NBYTES = 512 << 20
"""Bytes that each measurement reads."""


def bandwidths(path: Path, seed: int = 0) -> dict[int, float]:
    """Bytes per second of direct reads at random places of a file, by reads at the same time.

    Raises OSError where the file system has no direct reads.
    """
    blocks = path.stat().st_size // BLOCK
    rng = random.Random(seed)
    return {
        depth: _bandwidth(
            path, [BLOCK * rng.randrange(blocks) for _ in range(NBYTES // BLOCK)], depth
        )
        for depth in DEPTHS
    }


def _bandwidth(path: Path, offsets: list[int], depth: int) -> float:
    def read(mine: list[int]) -> int:
        with mmap.mmap(-1, BLOCK) as memory:
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                return sum(os.preadv(file, [memory], offset) for offset in mine)
            finally:
                os.close(file)

    began = perf_counter()
    with ThreadPoolExecutor(depth) as pool:
        total = sum(pool.map(read, [offsets[index::depth] for index in range(depth)]))
    return total / (perf_counter() - began)
