"""Which GGUF files are one model: a file, or the parts that llama.cpp splits a large one into."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from deepmnn.errors import CheckpointError
from deepmnn.source.regular_file import RegularFile

SUFFIX = ".gguf"
MAGIC = b"GGUF"
"""What a file begins with."""

MAX_PARTS = 1 << 12

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_OTHERS = re.compile(r"\..*|.*(mmproj|imatrix).*|(.*[-_.])?lora[-_.].*", re.IGNORECASE)
"""Files that are no language model: vision projectors, importance matrices, adapters."""


def models_of(names: Iterable[str]) -> list[str]:
    """The models among the names of files: of a split one, the name of its first part."""
    found = [name for name in names if name.endswith(SUFFIX) and not _is_other(name)]
    whole = (part_names(name)[0] for name in sorted(found))
    return list(dict.fromkeys(whole))


def tagged(models: Iterable[str], tag: str) -> list[str]:
    """The models with a tag such as Q4_K_M in their names, as a word: Q4_K is no part of it."""
    word = re.compile(rf"(?<![a-z0-9_]){re.escape(tag)}(?![a-z0-9_])", re.IGNORECASE)
    return [model for model in models if word.search(model)]


def part_names(name: str) -> list[str]:
    """The names of all parts of a model, by that of one; its own when it is not split."""
    match = _PART.fullmatch(name)
    count = int(match[3]) if match else 0
    if match is None or not 1 < count <= MAX_PARTS:
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}{SUFFIX}" for number in range(1, count + 1)]


def gguf_of(path: Path) -> Path | None:
    """The GGUF model of a path: the file itself, whatever it is called, or the one model in a
    directory; None where there is none. Raises CheckpointError when a directory has several.
    """
    if not os.path.isdir(path):
        named = path.suffix == SUFFIX and os.path.lexists(path)
        return path if named or _begins_as_gguf(path) else None
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


def _begins_as_gguf(path: Path) -> bool:
    """Whether a file is one by its first bytes: Ollama calls its models sha256-…."""
    try:
        return os.path.isfile(path) and RegularFile(path).read(0, len(MAGIC)).tobytes() == MAGIC
    except CheckpointError:
        return False


def files_of(path: Path) -> list[Path]:
    """The files of a model, by one of them."""
    return [path.with_name(name) for name in part_names(path.name)]


def _is_other(name: str) -> bool:
    return _OTHERS.fullmatch(name.rpartition("/")[2]) is not None
