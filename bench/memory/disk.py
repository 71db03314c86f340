"""How fast the disk gives large blocks, past the page cache, at the moment."""

from __future__ import annotations

from pathlib import Path

from bench.peers.cold import files_of

from deepmnn.errors import StorageError
from deepmnn.measure.disk import measure_disk

BLOCK = 4 << 20
"""Bytes of one read."""


def bandwidth(model: Path) -> float:
    """Bytes per second of direct reads at random places of a model's largest file.

    0 where it cannot be read past the page cache.
    """
    largest = max(files_of(model), key=lambda path: path.stat().st_size)
    try:
        found = measure_disk([largest], BLOCK)
    except StorageError:
        return 0.0
    return found.bandwidth if found.direct else 0.0
