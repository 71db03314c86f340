"""tiny-r1, the trained model that comes with the package, converted once per user."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from deepmnn import __version__
from deepmnn.errors import ArtifactError, CheckpointError, StorageError

CHECKPOINT = Path(__file__).parent / "tiny_r1"
_HINT = "Set XDG_CACHE_HOME to a directory that you may write to."
HELD_OUT = CHECKPOINT / "held_out.jsonl"
"""Problems that tiny-r1's training never saw."""


def cache_directory() -> Path:
    """Where converted models are kept: $XDG_CACHE_HOME/deepmnn or ~/.cache/deepmnn.

    Raises StorageError when there is neither.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "deepmnn"
    except RuntimeError as error:
        raise StorageError("this user has no home directory", "a cache", _HINT) from error


def bundled_model(
    quant: str = "w8", progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """The converted tiny-r1; converts it when this version of it is not in the cache yet.

    progress is that of `convert`. Raises CheckpointError when the package came without the model,
    StorageError when the cache cannot be written.
    """
    from deepmnn.artifact import Artifact
    from deepmnn.convert import convert

    target = cache_directory() / f"tiny-r1-{quant}-{_content_key()}"
    cached(
        target,
        Artifact.open,
        lambda: convert(CHECKPOINT, target, quant=quant, overwrite=True, progress=progress),
    )
    return target


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
                pass  # damaged, or of another format version: write it again
        write()
    except (StorageError, OSError) as error:
        found = error.found if isinstance(error, StorageError) else f"{target}: {error.strerror}"
        raise StorageError(found, "a cache that can be written", _HINT) from error


def _content_key() -> str:
    """Changes when the checkpoint or the package version does."""
    files = sorted(p for p in CHECKPOINT.glob("*") if p.is_file())
    if not (CHECKPOINT / "config.json").is_file():
        raise CheckpointError(
            f"{CHECKPOINT} holds no model",
            "the tiny-r1 checkpoint of the package",
            "Install deepmnn again.",
        )
    digest = blake2b(__version__.encode(), digest_size=6)
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
