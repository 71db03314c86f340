"""Weight expressions: what a weight is made of, evaluated lazily, one weight at a time.

A model file names checkpoint tensors; passes compose them (concatenate q, k and v; interleave gate
and up; ...). Nothing is read until the converter asks for `read`, so converting needs memory for
one weight, not for the model. Expressions are frozen and compare by structure: two weights with
equal expressions are the same weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import CheckpointError, GraphError
from deepmnn.formats import BLOCK_ROWS

F32 = NDArray[np.float32]


class TensorSource(Protocol):
    """Anything that hands out named float32 tensors: a checkpoint, an artifact, random numbers."""

    def read(self, name: str) -> F32:
        """The tensor, decoded to float32. Raises TensorNotFoundError."""
        ...


class Expr(ABC):
    """A lazily evaluated float32 tensor."""

    shape: tuple[int, ...]

    @abstractmethod
    def read(self, source: TensorSource) -> F32:
        """Evaluates to an array of `self.shape`."""


@dataclass(frozen=True)
class Tensor(Expr):
    """A checkpoint tensor, by its name there."""

    name: str
    shape: tuple[int, ...]

    def read(self, source: TensorSource) -> F32:
        array = source.read(self.name)
        if array.shape != self.shape:
            raise CheckpointError(
                f"tensor {self.name!r} has shape {list(array.shape)}",
                f"{list(self.shape)} from config.json",
                "Check that config.json belongs to these weights.",
            )
        return array


@dataclass(frozen=True)
class Concat(Expr):
    """Parts stacked along the first dimension: [sum(rows), ...]."""

    parts: tuple[Expr, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        tails = {part.shape[1:] for part in self.parts}
        if len(tails) != 1:
            raise GraphError(f"cannot concatenate rows of shapes {[p.shape for p in self.parts]}")
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def read(self, source: TensorSource) -> F32:
        out, row = np.empty(self.shape, np.float32), 0
        for part in self.parts:  # in place: only one part is in memory twice
            out[row : row + part.shape[0]] = part.read(source)
            row += part.shape[0]
        return out


@dataclass(frozen=True)
class Slice(Expr):
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

    def read(self, source: TensorSource) -> F32:
        array = self.x.read(source)
        per_head = array.reshape(self.heads, -1, *array.shape[1:])
        return np.ascontiguousarray(per_head[:, self.start : self.stop]).reshape(self.shape)


@dataclass(frozen=True)
class TransposeHeads(Expr):
    """Of x [heads * rows, cols]: every head's matrix transposed, [heads * cols, rows]."""

    x: Expr
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        rows, cols = self.x.shape
        return (self.heads * cols, rows // self.heads)

    def read(self, source: TensorSource) -> F32:
        array = self.x.read(source)
        per_head = array.reshape(self.heads, -1, array.shape[1])
        return np.ascontiguousarray(per_head.transpose(0, 2, 1)).reshape(self.shape)


@dataclass(frozen=True)
class PadHeads(Expr):
    """Of x [heads * rows, cols]: every head's rows padded with zeros to whole blocks of 16.

    The MLA kernels address one head of a packed matrix, so a head must start at a block.
    """

    x: Expr
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        rows = self.x.shape[0] // self.heads
        return (self.heads * math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, *self.x.shape[1:])

    def read(self, source: TensorSource) -> F32:
        rows, cols = self.x.shape[0] // self.heads, self.x.shape[1]
        out = np.zeros((self.heads, self.shape[0] // self.heads, cols), np.float32)
        out[:, :rows] = self.x.read(source).reshape(self.heads, rows, cols)
        return out.reshape(self.shape)


@dataclass(frozen=True)
class Interleave(Expr):
    """Parts of equal shape, padded with zero rows to whole blocks of 16, dealt out block by block.

    [rows, cols] × n → [n * ceil(rows / 16) * 16, cols]: block 0 of each part, then block 1, ...
    The fused SwiGLU kernel finds a gate block and its up block side by side.
    """

    parts: tuple[Expr, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        rows, cols = self.parts[0].shape
        return (len(self.parts) * math.ceil(rows / BLOCK_ROWS) * BLOCK_ROWS, cols)

    def read(self, source: TensorSource) -> F32:
        rows, cols = self.parts[0].shape
        blocks = math.ceil(rows / BLOCK_ROWS)
        out = np.zeros((blocks, len(self.parts), BLOCK_ROWS, cols), np.float32)
        whole = rows // BLOCK_ROWS
        for index, part in enumerate(self.parts):
            array = part.read(source)
            out[:whole, index] = array[: whole * BLOCK_ROWS].reshape(whole, BLOCK_ROWS, cols)
            out[whole:, index, : rows % BLOCK_ROWS] = array[whole * BLOCK_ROWS :]
            del array  # before the next part is read: only one is in memory twice
        return out.reshape(self.shape)


@dataclass(frozen=True)
class Constant(Expr):
    """Every element the same number (a missing bias in a fused projection is zeros)."""

    shape: tuple[int, ...]
    fill: float = 0.0

    def read(self, source: TensorSource) -> F32:
        return np.full(self.shape, self.fill, np.float32)
