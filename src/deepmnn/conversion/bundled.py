"""tiny-r1, the trained model that comes with the package, converted once per user."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from deepmnn import __version__
from deepmnn.artifact.cache import cache_directory, cached
from deepmnn.errors import CheckpointError

CHECKPOINT = Path(__file__).parents[1] / "tiny_r1"
HELD_OUT = CHECKPOINT / "held_out.jsonl"
"""Problems that tiny-r1's training never saw."""


def bundled_model(
    quant: str = "w8", progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """The converted tiny-r1; converts it when this version of it is not in the cache yet.

    progress is that of `convert`. Raises CheckpointError when the package came without the model,
    StorageError when the cache cannot be written.
    """
    from deepmnn.artifact.reader import Artifact
    from deepmnn.conversion.convert import convert

    target = cache_directory() / f"tiny-r1-{quant}-{_content_key()}"
    cached(
        target,
        Artifact.open,
        lambda: convert(CHECKPOINT, target, quant=quant, overwrite=True, progress=progress),
    )
    return target


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
