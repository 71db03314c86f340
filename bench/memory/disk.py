"""How fast the disk gives large blocks, past the page cache."""

from __future__ import annotations

from pathlib import Path

from deepmnn.errors import StorageError
from deepmnn.measure.disk import measure_disk

BLOCK = 4 << 20
"""Bytes of one read."""

DEPTHS = (1, 2, 3, 4)
"""Reads at the same time."""


def bandwidths(path: Path) -> dict[int, float]:
    """Bytes per second of direct reads at random places of a file, by reads at the same time.

    Raises StorageError where it cannot be read past the page cache.
    """
    found = {depth: measure_disk([path], BLOCK, depth) for depth in DEPTHS}
    if not all(each.direct for each in found.values()):
        raise StorageError(f"{path} cannot be read past the page cache")
    return {depth: each.bandwidth for depth, each in found.items()}
