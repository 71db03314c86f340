"""One GGUF file: its metadata, and where its tensors lie (ggml/docs/gguf.md).

magic, version, tensor count, key count
key, type, value                            for each key
name, dimensions, type, offset              for each tensor
the tensors' bytes, each at a multiple of general.alignment
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, UnsupportedModelError, shown
from deepmnn.source.gguf.metadata import MAX_KEYS, MAX_NAME, Cursor
from deepmnn.source.gguf.splits import MAGIC
from deepmnn.source.gguf.tensor import Tensor
from deepmnn.source.gguf.types import REMOVED, TYPES, TensorType
from deepmnn.source.regular_file import RE_DOWNLOAD, RegularFile

MAX_TENSORS = 1 << 16
"""DeepSeek-V3's file has 1,025."""

MAX_DIMS = 4
"""As in ggml."""

VERSIONS = (2, 3)

_OLDER = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""What GGML files before GGUF begin with: ggml, ggmf, ggjt, ggla."""

_LEAST_KEY, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8
"""Bytes of the smallest key with its value, and of the smallest tensor's description."""


class GgufFile:
    """A file's metadata and tensors; the tensors' numbers stay in the file until they are read.

    Args:
        path: the file.

    Attributes:
        metadata: key → value.
        tensors: name → tensor, in the file's order.

    Raises CheckpointError for a damaged file, or one of another format; UnsupportedModelError for
    tensors of a type that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = RegularFile(path)
        cursor = Cursor(file)
        self._check_magic(cursor)
        tensors = cursor.count(_LEAST_TENSOR, MAX_TENSORS, "the number of tensors")
        keys = cursor.count(_LEAST_KEY, MAX_KEYS, "the number of keys")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = cursor.string("a key", MAX_NAME)
            if key in self.metadata:
                raise CheckpointError(f"{path}: the key {shown(key)} appears twice", "once")
            # Other texts are compared with names that are known, or not used at all: an author.
            strict = key.startswith("tokenizer.")
            self.metadata[key] = cursor.value(f"the key {shown(key)}", strict)
        found = [_tensor(cursor) for _ in range(tensors)]
        alignment = self._alignment()
        start = -(-cursor.position // alignment) * alignment
        placed = [tensor.moved(start, alignment) for tensor in found]
        self.tensors = {tensor.name: tensor for tensor in placed}
        if len(self.tensors) < len(placed):
            raise CheckpointError(f"{path}: two tensors have one name", "a name for each")
        _check_apart(placed)

    def _check_magic(self, cursor: Cursor) -> None:
        magic = cursor.take(4, "its head")
        if magic != MAGIC:
            older = magic in _OLDER
            raise CheckpointError(
                f"{self.path} is {'a GGML file from before GGUF' if older else 'no GGUF file'} "
                f"(it begins with {magic!r})",
                "a GGUF file of version 2 or 3",
                "Convert the original checkpoint instead." if older else RE_DOWNLOAD,
            )
        version = cursor.integer(4, "its version")
        if version in VERSIONS:
            return
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS)
        raise CheckpointError(
            f"{self.path} is {'a big-endian GGUF file' if big_endian else f'GGUF {version}'}",
            "a little-endian GGUF file of version 2 or 3",
            "Convert it with gguf-py's gguf_convert_endian.py."
            if big_endian
            else "Download a newer file of the model.",
        )

    def _alignment(self) -> int:
        found = self.metadata.get("general.alignment", 32)
        if type(found) is not int or found < 1 or found & (found - 1) or found > 1 << 20:
            raise CheckpointError(
                f"{self.path}: general.alignment is {shown(found)}", "a power of two up to 2^20"
            )
        return found


def _tensor(cursor: Cursor) -> Tensor:
    """A tensor's description; `begin` is its offset in the data."""
    path = cursor.file.path
    name = cursor.string("a tensor's name", MAX_NAME)
    what = f"the tensor {shown(name)}"
    dims = cursor.integer(4, f"the dimensions of {what}")
    if not 1 <= dims <= MAX_DIMS:
        raise CheckpointError(f"{path}: {what} has {dims} dimensions", f"1 to {MAX_DIMS}")
    # ggml's first dimension is the one whose numbers lie together: numpy's last.
    shape = tuple(cursor.integer(8, f"the shape of {what}") for _ in range(dims))[::-1]
    kind = _type(path, what, cursor.integer(4, f"the type of {what}"))
    if not all(0 < size <= 1 << 48 for size in shape) or math.prod(shape) > 1 << 48:
        raise CheckpointError(f"{path}: {what} has the shape {list(shape)}", "sizes", RE_DOWNLOAD)
    if shape[-1] % kind.block:
        raise CheckpointError(
            f"{path}: {what} has {shape[-1]} columns of type {kind.name}",
            f"a multiple of {kind.block}",
        )
    return Tensor(cursor.file, name, kind, shape, cursor.integer(8, f"the offset of {what}"))


def _type(path: Path, what: str, number: int) -> TensorType:
    if number in TYPES:
        return TYPES[number]
    name = REMOVED.get(number)
    raise UnsupportedModelError(
        f"{path}: {what} is of type {name or number}"
        + (", which llama.cpp has removed from GGUF" if name else ""),
        f"one of {', '.join(kind.name for kind in TYPES.values())}",
        "Download another file of the model, such as Q4_K_M or Q8_0.",
    )


def _check_apart(tensors: list[Tensor]) -> None:
    """Raises CheckpointError when tensors share bytes."""
    ordered = sorted(tensors, key=lambda tensor: tensor.begin)
    for first, second in pairwise(ordered):
        if first.end > second.begin:
            raise CheckpointError(
                f"{first.file.path}: the tensors {shown(first.name)} and {shown(second.name)} "
                "overlap",
                "bytes of its own for each",
                RE_DOWNLOAD,
            )
