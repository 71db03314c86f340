"""Random weights: a TensorSource without a checkpoint, for benchmarks and shape tests."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from deepmnn.errors import TensorNotFoundError
from deepmnn.graph.ir import Graph
from deepmnn.graph.weights import F32, Expr, Tensor


class RandomSource:
    """Deterministic normals by (seed, name), scaled so that a model's logits are sane.

    Matrices have a deviation of 1 / sqrt(columns), which keeps the size of what they multiply;
    one-dimensional tensors are 1 + small (norms) or small (biases).

    Args:
        shapes: tensor name → shape.
        seed: another seed, another model.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        self._shapes = shapes
        self._seed = seed

    def read(self, name: str) -> F32:
        """The tensor, the same at every call. Raises TensorNotFoundError."""
        if name not in self._shapes:
            raise TensorNotFoundError(f"the model has no tensor {name!r}")
        shape = self._shapes[name]
        values = generator(self._seed, name).standard_normal(shape, np.float32)
        values *= np.float32(1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.05)
        if len(shape) == 1 and not name.endswith("bias"):
            values += np.float32(1)
        return values


def generator(seed: int, name: str) -> np.random.Generator:
    """The generator of one tensor: independent of every other name and seed."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))


def tensor_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Checkpoint tensor name → shape, of every tensor that the graph's weights are made of."""
    return {t.name: t.shape for weight in graph.weights.values() for t in tensors(weight.expr)}


def tensors(expr: Expr) -> Iterator[Tensor]:
    """The checkpoint tensors that an expression reads."""
    if isinstance(expr, Tensor):
        yield expr
        return
    for field in dataclasses.fields(expr):  # type: ignore[arg-type]
        value = getattr(expr, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Expr):
                yield from tensors(part)
