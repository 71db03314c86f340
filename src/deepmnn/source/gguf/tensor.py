"""One tensor in a GGUF file: where its bytes are, and what they mean."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, shown
from deepmnn.formats import KeptCodes
from deepmnn.graph.weights import F32
from deepmnn.source.entry import SAMPLE_BYTES
from deepmnn.source.gguf.types import TensorType
from deepmnn.source.regular_file import RE_DOWNLOAD, RegularFile

_CHUNK = 1 << 18
"""Numbers that are decoded at once: a tensor takes little more memory than its float32."""


@dataclass(frozen=True)
class Tensor:
    """A tensor, or some of its rows.

    Attributes:
        file: that it is in.
        name: its name there.
        type: how its numbers are stored.
        shape: as numpy has it; a row, the last dimension, is a whole number of blocks.
        begin: its first byte, from the file's start.
    """

    file: RegularFile
    name: str
    type: TensorType
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return math.prod(self.shape) // self.type.block * self.type.nbytes

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.begin + self.nbytes

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row."""
        return self.shape[-1] // self.type.block * self.type.nbytes

    def moved(self, start: int, alignment: int) -> Tensor:
        """The tensor whose `begin` was an offset in the data, which begins at `start`.

        Raises CheckpointError when the offset is none, or the tensor is not all in the file.
        """
        if self.begin % alignment:
            raise CheckpointError(
                f"{self.file.path}: the tensor {shown(self.name)} is at {self.begin}",
                f"a multiple of {alignment}",
                RE_DOWNLOAD,
            )
        if start + self.end > self.file.size:
            raise CheckpointError(
                f"{self.file.path} has {self.file.size} bytes, and the tensor {shown(self.name)} "
                f"ends at {start + self.end}",
                "",
                RE_DOWNLOAD,
            )
        return replace(self, begin=start + self.begin)

    def part(self, index: int) -> Tensor:
        """tensor[index], of a tensor with several dimensions."""
        part = replace(self, shape=self.shape[1:])
        return replace(part, begin=self.begin + index * part.nbytes)

    def rows(self, start: int, stop: int) -> Tensor:
        """tensor[start:stop], of a matrix, or of a vector whose blocks are single numbers."""
        part = replace(self, shape=(stop - start, *self.shape[1:]))
        row = self.row_nbytes if len(self.shape) > 1 else self.type.nbytes
        return replace(part, begin=self.begin + start * row)

    def read(self, order: NDArray[np.intp] | None = None) -> F32:
        """The numbers. order: row i of the tensor becomes row order[i] of the result.

        Raises CheckpointError for a file that has changed meanwhile.
        """
        columns = 1 if len(self.shape) == 1 and order is not None else self.shape[-1]
        out = np.empty((math.prod(self.shape) // columns, columns), np.float32)
        if order is None:
            flat = out.reshape(-1, self.type.block)
            for at, blocks in self._blocks(self.type.nbytes):
                flat[at : at + len(blocks)] = self.type.values(blocks)
        else:
            width = columns // self.type.block
            for at, rows in self._blocks(width * self.type.nbytes):
                values = self.type.values(rows.reshape(-1, self.type.nbytes))
                out[order[at : at + len(rows)]] = values.reshape(len(rows), columns)
        return out.reshape(self.shape)

    def codes(self, order: NDArray[np.intp] | None = None) -> KeptCodes | None:
        """A matrix's codes, whose `values()` are the numbers that `read` gives; None for a type
        without a kept format. order: as of `read`.

        Raises CheckpointError for a file that has changed meanwhile.
        """
        if self.kept_format is None or self.type.groups is None:
            return None
        parts: list[KeptCodes] = []
        for _, rows in self._blocks(self.row_nbytes):
            found = self.type.groups(rows.reshape(-1, self.type.nbytes))
            assert isinstance(found, KeptCodes)
            parts.append(_by_rows(found, len(rows)))
        return _joined(parts, None if order is None else np.argsort(order))

    @property
    def kept_format(self) -> str | None:
        """The kept format that `codes` gives; None for what is no matrix, too."""
        return self.type.kept_format if len(self.shape) == 2 else None

    def sample(self) -> bytes:
        """A little of the stored bytes, at the same places in all tensors of one size."""
        nbytes = min(SAMPLE_BYTES, self.nbytes)
        places = (0, (self.nbytes - nbytes) // 2, self.nbytes - nbytes)
        begins = (self.begin + place for place in places)
        return b"".join(self.file.read_each(begins, nbytes, self._what))

    def digest(self) -> bytes:
        """A hash of the stored bytes, and of what they mean. Raises as `read`."""
        made = hashlib.blake2b(f"{self.type.name} {self.shape}".encode(), digest_size=16)
        for _, blocks in self._blocks(self.type.nbytes):
            made.update(blocks.data)
        return made.digest()

    def _blocks(self, unit: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The stored bytes, some units after another: (number of the first, [units, unit])."""
        numbers = unit // self.type.nbytes * self.type.block
        count, many = self.nbytes // unit, max(1, _CHUNK // numbers)
        for at in range(0, count, many):
            here = min(many, count - at)
            raw = self.file.read(self.begin + at * unit, here * unit, self._what)
            yield at, raw.reshape(here, unit)

    @property
    def _what(self) -> str:
        return f"the tensor {shown(self.name)}"


_ARRAYS = tuple(field.name for field in fields(KeptCodes) if field.name != "format")


def _by_rows(blocks: KeptCodes, rows: int) -> KeptCodes:
    """A matrix from its blocks, one after another: they have no padding."""
    arrays: dict[str, Any] = {name: getattr(blocks, name).reshape(rows, -1) for name in _ARRAYS}
    return replace(blocks, **arrays)


def _joined(parts: list[KeptCodes], rows: NDArray[np.intp] | None) -> KeptCodes:
    """Parts of a matrix one below the other; rows: those of the result, in its order."""
    whole: dict[str, Any] = {}
    for name in _ARRAYS:
        array = np.concatenate([getattr(part, name) for part in parts])
        whole[name] = array if rows is None else array[rows]
    return replace(parts[0], **whole)
