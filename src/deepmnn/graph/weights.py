"""Weight expressions: what a weight is made of, evaluated lazily, one weight at a time.

A model file names checkpoint tensors; passes compose them (concatenate q, k and v; interleave gate
and up; ...). Nothing is read until the converter asks for `read`, so converting needs memory for
one weight, not for the model. Expressions are frozen and compare by structure: two weights with
equal expressions are the same weight.

A row of a quantised matrix has codes and scales of its own. So an expression that only moves rows
moves codes as well as numbers: `codes` hands on what a source stores, and nothing is rounded again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, GraphError
from deepmnn.formats import BLOCK_ROWS, Codes, Field, KeptCodes

F32 = NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)


class TensorSource(Protocol):
    """Anything that hands out named float32 tensors: a checkpoint, an artifact, random numbers."""

    def read(self, name: str) -> F32:
        """The tensor, decoded to float32. Raises TensorNotFoundError."""
        ...


class CodeSource(TensorSource, Protocol):
    """One that may hold tensors as codes of formats that we store."""

    def codes(self, name: str) -> Codes | KeptCodes | None:
        """The tensor's codes; None when it has none. Raises TensorNotFoundError."""
        ...

    def kept_format(self, name: str) -> str | None:
        """The kept format that they are in; None for another, or none. Raises as `codes`."""
        ...


class Expr(ABC):
    """A lazily evaluated float32 tensor."""

    shape: tuple[int, ...]

    @abstractmethod
    def read(self, source: TensorSource) -> F32:
        """Evaluates to an array of `self.shape`."""

    def codes(self, source: CodeSource) -> Codes | KeptCodes | None:
        """The same as codes, exactly; None when the source has none or numbers must be computed."""
        return None

    def kept_format(self, source: CodeSource) -> str | None:
        """The kept format that `codes` gives, without reading any; None for another, or none."""
        return None

    def children(self) -> Iterator[Expr]:
        """The expressions that this one is made of."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            parts = value if isinstance(value, tuple) else (value,)
            yield from (part for part in parts if isinstance(part, Expr))


@dataclass(frozen=True)
class Tensor(Expr):
    """A checkpoint tensor, by its name there."""

    name: str
    shape: tuple[int, ...]

    def read(self, source: TensorSource) -> F32:
        array = source.read(self.name)
        self._check(array.shape, self.shape)
        return array

    def codes(self, source: CodeSource) -> Codes | KeptCodes | None:
        codes = source.codes(self.name)
        if codes is not None:
            rows, cols = self.shape
            for field, expected in codes.fields(rows, cols).items():
                self._check(getattr(codes, field).shape, expected.shape)
        return codes

    def kept_format(self, source: CodeSource) -> str | None:
        return source.kept_format(self.name)

    def _check(self, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise CheckpointError(
                f"tensor {self.name!r} has shape {list(found)}",
                f"{list(expected)} from config.json",
                "Check that config.json belongs to these weights.",
            )


class RowMover(Expr):
    """An expression that only moves rows, of numbers or of codes, and adds rows of zeros."""

    @abstractmethod
    def place(self, parts: Iterator[NDArray[_T]], out: NDArray[_T], zero: float = 0) -> None:
        """Writes every row to its place.

        Args:
            parts: arrays [rows, n], one for each child; one may be in memory at a time.
            out: [rows of this expression, n].
            zero: what the added rows hold.
        """

    def read(self, source: TensorSource) -> F32:
        out = np.empty(self.shape, np.float32)
        self.place((part.read(source) for part in self.children()), out)
        return out

    def codes(self, source: CodeSource) -> Codes | KeptCodes | None:
        found = [child.codes(source) for child in self.children()]
        parts = [codes for codes in found if codes is not None]
        if len(parts) < len(found) or len({codes.format for codes in parts}) > 1:
            return None
        arrays: dict[str, Any] = {
            name: self._placed([getattr(part, name) for part in parts], field)
            for name, field in parts[0].fields(*self.shape).items()
        }
        return dataclasses.replace(parts[0], **arrays)

    def kept_format(self, source: CodeSource) -> str | None:
        found = {child.kept_format(source) for child in self.children()}
        return found.pop() if len(found) == 1 else None

    def _placed(self, parts: list[NDArray[np.generic]], field: Field) -> NDArray[np.generic]:
        out = np.empty(field.shape, field.dtype)
        self.place(iter(parts), out, field.zero)
        return out


@dataclass(frozen=True)
class Concat(RowMover):
    """Parts stacked along the first dimension: [sum(rows), ...]."""

    parts: tuple[Expr, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        tails = {part.shape[1:] for part in self.parts}
        if len(tails) != 1:
            raise GraphError(f"cannot concatenate rows of shapes {[p.shape for p in self.parts]}")
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def place(self, parts: Iterator[NDArray[_T]], out: NDArray[_T], zero: float = 0) -> None:
        row = 0
        for part in self.parts:
            out[row : row + part.shape[0]] = next(parts)
            row += part.shape[0]


@dataclass(frozen=True)
class Slice(RowMover):
    """Of x viewed as [heads, x.rows / heads, ...]: rows start..stop of every head, as a matrix.

    heads=1 is a plain row slice. It splits kv_b_proj into its key and value halves.
    """

    x: Expr
    start: int
    stop: int
    heads: int = 1

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.heads * (self.stop - self.start), *self.x.shape[1:])

    def place(self, parts: Iterator[NDArray[_T]], out: NDArray[_T], zero: float = 0) -> None:
        per_head = _by_head(next(parts), self.heads)
        _by_head(out, self.heads)[:] = per_head[:, self.start : self.stop]


@dataclass(frozen=True)
class PadHeads(RowMover):
    """Of x [heads * rows, cols]: every head's rows padded with zeros to whole blocks of 16.

    The MLA kernels address one head of a packed matrix, so a head must start at a block.
    """

    x: Expr
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        rows = self.x.shape[0] // self.heads
        return (self.heads * math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, *self.x.shape[1:])

    def place(self, parts: Iterator[NDArray[_T]], out: NDArray[_T], zero: float = 0) -> None:
        rows, per_head = self.x.shape[0] // self.heads, _by_head(out, self.heads)
        per_head[:, :rows] = _by_head(next(parts), self.heads)
        per_head[:, rows:] = zero


@dataclass(frozen=True)
class Interleave(RowMover):
    """Parts of equal shape, padded with zero rows to whole blocks of 16, dealt out block by block.

    [rows, cols] × n → [n * ceil(rows / 16) * 16, cols]: block 0 of each part, then block 1, ...
    The fused SwiGLU kernel finds a gate block and its up block side by side.
    """

    parts: tuple[Expr, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        rows, cols = self.parts[0].shape
        return (len(self.parts) * math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, cols)

    def place(self, parts: Iterator[NDArray[_T]], out: NDArray[_T], zero: float = 0) -> None:
        rows, columns = self.parts[0].shape[0], out.shape[1]
        blocks = out.reshape(-1, len(self.parts), BLOCK_ROWS, columns)
        whole, rest = divmod(rows, BLOCK_ROWS)
        for index in range(len(self.parts)):
            array = next(parts)
            blocks[:whole, index] = array[: whole * BLOCK_ROWS].reshape(whole, BLOCK_ROWS, columns)
            blocks[whole:, index, :rest] = array[whole * BLOCK_ROWS :]
            del array  # before the next part is read: only one is in memory twice
        blocks[whole:, :, rest:] = zero


@dataclass(frozen=True)
class Flat(Expr):
    """The numbers of a matrix, row after row, as a vector: a table that no format may round."""

    x: Expr

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (math.prod(self.x.shape),)

    def read(self, source: TensorSource) -> F32:
        return self.x.read(source).reshape(-1)


@dataclass(frozen=True)
class Constant(Expr):
    """Every element the same number (a missing bias in a fused projection is zeros)."""

    shape: tuple[int, ...]
    fill: float = 0.0

    def read(self, source: TensorSource) -> F32:
        return np.full(self.shape, self.fill, np.float32)


def digest_of(array: NDArray[Any]) -> bytes:
    """A hash of the bytes of an array."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()


def _by_head(matrix: NDArray[_T], heads: int) -> NDArray[_T]:
    """[heads * rows, ...] → [heads, rows, ...], the same memory."""
    return matrix.reshape(heads, -1, *matrix.shape[1:])
