"""MNN folders of converted models, exported once per user."""

from __future__ import annotations

import logging
from pathlib import Path

from deepmnn import __version__
from deepmnn.artifact.cache import Hold, keep, make_room
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.write import Progress
from deepmnn.exporters.mnn.folder import MnnFolder
from deepmnn.source.sizes import file_size

log = logging.getLogger("deepmnn")


def exported_model(artifact: Artifact, progress: Progress | None = None) -> Hold:
    """The artifact's MNN folder in the user's cache; exports it when it is not there yet.

    progress is that of `export`. Raises as `export`, StorageError when the cache cannot be
    written.
    """
    from deepmnn.exporters.mnn.export import export

    def write(target: Path) -> None:
        size = artifact.weights_nbytes
        make_room(size)
        log.info("exporting %s for MNN, about %s, once: %s", artifact.path, file_size(size), target)
        export(artifact.path, target, progress=progress)

    name = f"mnn-{artifact.manifest['crc32']:08x}-{__version__}"
    facts = {"source": str(artifact.path.resolve()), "recipe": f"{artifact.manifest['quant']}, MNN"}
    return keep(name, facts, MnnFolder.open, write)
