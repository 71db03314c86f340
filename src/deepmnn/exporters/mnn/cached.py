"""MNN folders of converted models, exported once per user."""

from __future__ import annotations

from pathlib import Path

from deepmnn import __version__
from deepmnn.artifact.cache import cache_directory, cached
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.write import Progress
from deepmnn.exporters.mnn.folder import MnnFolder


def exported_model(artifact: Artifact, progress: Progress | None = None) -> Path:
    """The artifact's MNN folder in the user's cache; exports it when it is not there yet.

    progress is that of `export`. Raises as `export`, StorageError when the cache cannot be
    written.
    """
    from deepmnn.exporters.mnn.export import export

    target = cache_directory() / f"mnn-{artifact.manifest['crc32']:08x}-{__version__}"
    cached(
        target,
        MnnFolder.open,
        lambda: export(artifact.path, target, overwrite=True, progress=progress),
    )
    return target
