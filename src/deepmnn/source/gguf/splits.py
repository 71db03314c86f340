"""Which GGUF files are one model: a file, or the parts that llama.cpp splits a large one into."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError
from deepmnn.source.gguf.file import GgufFile
from deepmnn.source.gguf.tensor import Tensor
from deepmnn.source.regular_file import RE_DOWNLOAD

SUFFIX = ".gguf"

MAX_PARTS = 1 << 12

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_OTHERS = re.compile(r"\..*|mmproj.*|.*mmproj.*\.gguf|.*imatrix.*|.*lora.*", re.IGNORECASE)
"""Files that are no language model: vision projectors, importance matrices, adapters."""


@dataclass(frozen=True)
class Contents:
    """What a model's files hold together.

    Attributes:
        metadata: of the first file.
        tensors: name → tensor, of all files.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def models_of(names: Iterable[str]) -> list[str]:
    """The models among the names of files: of a split one, the name of its first part."""
    found = [name for name in names if name.endswith(SUFFIX) and not _is_other(name)]
    whole = (part_names(name)[0] for name in sorted(found))
    return list(dict.fromkeys(whole))


def part_names(name: str) -> list[str]:
    """The names of all parts of a model, by that of one; its own when it is not split."""
    match = _PART.fullmatch(name)
    count = int(match[3]) if match else 0
    if match is None or not 1 < count <= MAX_PARTS:
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}{SUFFIX}" for number in range(1, count + 1)]


def gguf_of(path: Path) -> Path | None:
    """The GGUF model of a path: the file itself, or the one model in a directory; None where there
    is none. Raises CheckpointError when a directory has several.
    """
    if not os.path.isdir(path):
        return path if path.suffix == SUFFIX and os.path.lexists(path) else None
    found = models_in(path)
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds several GGUF models",
            "one",
            f"Name the file: {', '.join(str(path / name) for name in found)}.",
        )
    return path / found[0] if found else None


def models_in(directory: Path) -> list[str]:
    """The GGUF models that lie in a directory; none when it cannot be read."""
    try:
        return models_of(os.listdir(directory))
    except OSError:
        return []


def files_of(path: Path) -> list[Path]:
    """The files of a model, by one of them."""
    return [path.with_name(name) for name in part_names(path.name)]


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


def _is_other(name: str) -> bool:
    return _OTHERS.fullmatch(name.rpartition("/")[2]) is not None
