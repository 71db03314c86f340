"""MNN folders of converted models, exported once per user.

A folder is found again by the SHA-256 of the model's files. Their checksums would not do: whoever
writes a model can give it the checksums of another. As hashing takes a second for each gigabyte or
two, the cache notes with a folder which files it was made of, by what only the system writes of
them (device, inode, time of change); a model whose files are the noted ones is not read again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from deepmnn import __version__
from deepmnn.artifact import cache
from deepmnn.artifact.cache import Hold, keep, make_room
from deepmnn.artifact.manifest import MANIFEST
from deepmnn.artifact.reader import Artifact
from deepmnn.conversion.write import Progress
from deepmnn.errors import ArtifactError
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
        size = artifact.unshared_nbytes
        make_room(size)
        log.info("exporting %s for MNN, about %s, once: %s", artifact.path, file_size(size), target)
        export(artifact.path, target, progress=progress)
        if _identity(artifact) != identity:
            shutil.rmtree(target, ignore_errors=True)
            raise ArtifactError(f"{artifact.path} has changed meanwhile", "", "Load it again.")

    identity = _identity(artifact)
    facts = {
        "source": str(artifact.path.resolve()),
        "recipe": f"{artifact.manifest['quant']}, MNN",
        "files": identity,
    }
    name = _noted(identity) or f"mnn-{_digest(artifact)}-{__version__}"
    return keep(name, facts, MnnFolder.open, write)


def _noted(identity: str) -> str | None:
    """The name of the folder that was made of these very files."""
    names = (e.path.name for e in cache.entries() if e.facts.get("files") == identity)
    return next((n for n in names if n.startswith("mnn-") and n.endswith(f"-{__version__}")), None)


def _digest(artifact: Artifact) -> str:
    """SHA-256 of the names and contents of all files. Raises ArtifactError."""
    whole = hashlib.sha256()
    for file in _files(artifact):
        try:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as fault:
            raise ArtifactError(f"{file} cannot be read: {fault.strerror}") from None
        whole.update(f"{file.name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()[:32]  # 128 bits, so that the name stays short


def _identity(artifact: Artifact) -> str:
    """Changes whenever a file is written, replaced or renamed. Raises ArtifactError."""
    whole = hashlib.sha256()
    for file in _files(artifact):
        try:
            s = file.stat()
        except OSError as fault:
            raise ArtifactError(f"{file} cannot be read: {fault.strerror}") from None
        state = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        whole.update(f"{file.name}\0{state}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _files(artifact: Artifact) -> Iterator[Path]:
    """The manifest and all that it lists, in a fixed order."""
    shards = (record["file"] for record in artifact.manifest["shards"])
    for name in sorted({MANIFEST, *artifact.manifest["files"], *shards}):
        yield artifact.path / name
