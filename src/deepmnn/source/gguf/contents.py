"""What the files of a GGUF model hold together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.splits import files_of
from deepmnn.source.gguf.tensor import Tensor
from deepmnn.source.regular_file import RE_DOWNLOAD


@dataclass(frozen=True)
class Contents:
    """What a model's files hold together.

    Attributes:
        metadata: of the first file.
        tensors: name → tensor, of all files.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_contents(path: Path) -> Contents:
    """All that a model's files hold; path: one of them.

    Raises CheckpointError, UnsupportedModelError as GgufFile, and CheckpointError for parts that
    are missing or of another model.
    """
    paths = files_of(path)
    for part in paths:
        if not os.path.lexists(part):
            raise CheckpointError(
                f"{part} is missing",
                f"all {len(paths)} files of the model",
                "The download is incomplete; download the missing file.",
            )
    files = [GgufFile(part) for part in paths]
    for number, file in enumerate(files):
        _check_part(file, number, len(files))
    tensors: dict[str, Tensor] = {}
    for file in files:
        if both := tensors.keys() & file.tensors.keys():
            raise CheckpointError(
                f"tensor {min(both)!r:.200} is in {file.path} and in a part before it",
                "each tensor in one part",
                RE_DOWNLOAD,
            )
        tensors |= file.tensors
    total = files[0].metadata.get("split.tensors.count")
    if total is not None and total != len(tensors):
        raise CheckpointError(
            f"{files[0].path.name} and its other parts have {len(tensors)} tensors",
            f"{total!r:.40}, as split.tensors.count says",
            RE_DOWNLOAD,
        )
    return Contents(files[0].metadata, tensors)


def _check_part(file: GgufFile, number: int, count: int) -> None:
    """Raises CheckpointError unless a file is that part of as many."""
    said = file.metadata.get("split.no", 0), file.metadata.get("split.count", 0) or 1
    if said != (number, count):
        raise CheckpointError(
            f"{file.path} says that it is part {said[0]!r:.40}, from 0, of {said[1]!r:.40}",
            f"part {number} of {count}",
            "Give all parts the names that they were downloaded under: NAME-00001-of-00002.gguf.",
        )
