"""The user's cache: what is converted or exported once and found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from deepmnn.artifact.workspace import discard
from deepmnn.errors import ArtifactError, StorageError

_HINT = "Set XDG_CACHE_HOME to a directory that you may write to."


def cache_directory() -> Path:
    """Where converted models are kept: $XDG_CACHE_HOME/deepmnn or ~/.cache/deepmnn.

    Raises StorageError when there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "deepmnn"
    except RuntimeError as error:
        raise StorageError("this user has no home directory", "a cache", _HINT) from error


def cached(target: Path, check: Callable[[Path], object], write: Callable[[], object]) -> None:
    """Writes `target` unless it is there and `check` raises no ArtifactError.

    Raises StorageError when the cache cannot be written.
    """
    try:
        if target.exists():
            try:
                check(target)
                return
            except ArtifactError:
                discard(target)  # damaged, or of another format version: write it again
        write()
    except (StorageError, OSError) as error:
        found = error.found if isinstance(error, StorageError) else f"{target}: {error.strerror}"
        raise StorageError(found, "a cache that can be written", _HINT) from error
