"""Two models' numbers, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from deepmnn.formats import BLOCK_ROWS, F32
from deepmnn.inspect.compare.difference import relative
from deepmnn.source.source import Source

Progress = Callable[[int, int, str], None]

_ROWS = 4096
"""Of a tensor at a time, for float64 takes memory."""


@dataclass(frozen=True)
class TensorDifference:
    """Of a tensor of the model from the reference's.

    Attributes:
        name: in a checkpoint.
        error: root mean square of the difference, relative to the reference.
        rows: the first of the BLOCK_ROWS rows whose relative error is the largest, and
        rows_error: that error, and
        usual_error: the median of all blocks of rows.
        instead: another tensor of the reference's that it is instead; "" where there is none.
    """

    name: str
    error: float
    rows: int = 0
    rows_error: float = 0.0
    usual_error: float = 0.0
    instead: str = ""


def compare_weights(
    model: Source, reference: Source, suspicious: float, progress: Progress | None = None
) -> Iterator[TensorDifference]:
    """Every tensor that both have, in the reference's order. Memory holds two tensors.

    suspicious: an error from which on a tensor may be another one of the same module.
    """
    names = [name for name in reference.names() if name in model]
    for number, name in enumerate(names):
        found, wanted = model.read(name), reference.read(name)
        if found.shape == wanted.shape:
            apart = tensor_difference(name, found, wanted)
            if apart.error > suspicious:
                yield _explained(apart, found, reference)
            else:
                yield apart
        if progress is not None:
            progress(number + 1, len(names), f"weights: {name}")


def tensor_difference(name: str, found: F32, wanted: F32) -> TensorDifference:
    """Of two arrays of one shape."""
    matrix = (-1, wanted.shape[-1]) if wanted.ndim > 1 else (1, -1)
    here, there = found.reshape(matrix), wanted.reshape(matrix)
    squares, norms = np.empty(len(there)), np.empty(len(there))
    for start in range(0, len(there), _ROWS):
        part = slice(start, start + _ROWS)
        squares[part] = np.square(here[part] - there[part], dtype=np.float64).sum(axis=1)
        norms[part] = np.square(there[part], dtype=np.float64).sum(axis=1)
    error = relative(float(squares.sum()), float(norms.sum()))
    starts = np.arange(0, len(there), BLOCK_ROWS)
    if len(starts) < 2:
        return TensorDifference(name, error, 0, error, error)
    tops, bottoms = (np.add.reduceat(sums, starts) for sums in (squares, norms))
    by_block: NDArray[np.float64] = np.sqrt(tops / np.maximum(bottoms, 1e-30))
    by_block[bottoms <= 1e-30] = 0.0  # rows of zeros, as of tokens that are not used
    worst = int(by_block.argmax())
    return TensorDifference(
        name, error, int(starts[worst]), float(by_block[worst]), float(np.median(by_block))
    )


def _explained(apart: TensorDifference, found: F32, reference: Source) -> TensorDifference:
    """Whether it is another tensor of its module: gate for up, say."""
    module = PurePosixPath(apart.name.replace(".", "/")).parent.parent
    prefix = ".".join(module.parts) + "."
    for other in reference.names():
        if other == apart.name or not other.startswith(prefix):
            continue
        if other.removeprefix(prefix).count(".") != 1 or reference.shape(other) != found.shape:
            continue
        if tensor_difference(other, found, reference.read(other)).error < apart.error / 2:
            return TensorDifference(
                apart.name,
                apart.error,
                apart.rows,
                apart.rows_error,
                apart.usual_error,
                other,
            )
    return apart
