"""Random weights: a source without tensors on disk, for benchmarks and shape tests."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepmnn.errors import RequestError, TensorNotFoundError, argument
from deepmnn.graph.weights import F32
from deepmnn.source.side_files import read_side_files
from deepmnn.source.source import Source
from deepmnn.source.tensor_names import TABLE

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name → shape."""


@dataclass(frozen=True)
class RandomWeights:
    """What to draw instead of reading weights.

    Attributes:
        shapes_of: the tensors that a model of these fields of config.json has.
        seed: another seed, another model.

    Raises RequestError for a seed that is no number of at least 0.
    """

    shapes_of: Callable[[Mapping[str, Any]], Shapes]
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise RequestError(
                argument("seed", f" is {self.seed!r:.80}"), "an integer of at least 0"
            )


class RandomSource(Source):
    """Deterministic normals by (seed, name), scaled so that a model's logits are sane.

    Matrices have a deviation of 1 / sqrt(columns), which keeps the size of what they multiply;
    one-dimensional tensors are 1 + small (norms) or small (biases).

    Args:
        shapes: tensor name → shape.
        seed: another seed, another model.
        config: the fields of config.json.
        path, config_file: where the small files are, if there are any.
    """

    def __init__(
        self,
        shapes: Shapes,
        seed: int = 0,
        config: dict[str, Any] | None = None,
        path: Path | None = None,
        config_file: Path | None = None,
    ) -> None:
        self.config = config or {}
        self.seed = seed
        self._shapes = shapes
        self._home = path, config_file
        self.paths = () if config_file is None else (config_file,)

    def names(self) -> list[str]:
        """Those that the model has."""
        return list(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        if name not in self._shapes:
            raise TensorNotFoundError(f"the model has no tensor {name!r}")
        return self._shapes[name]

    def read(self, name: str) -> F32:
        """The tensor, the same at every call. Raises TensorNotFoundError."""
        shape = self.shape(name)
        if name.endswith(TABLE):
            return self._table(name, shape)
        values = generator(self.seed, name).standard_normal(shape, np.float32)
        values *= np.float32(1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.05)
        if len(shape) == 1 and not name.endswith("bias"):
            values += np.float32(1)
        return values

    def _table(self, name: str, shape: tuple[int, ...]) -> F32:
        """Different experts for every id, by their numbers: neighbours, from a random one on."""
        experts = self.config.get("n_routed_experts")
        count = experts if isinstance(experts, int) and experts >= shape[1] else shape[1]
        first = generator(self.seed, name).integers(0, count, (shape[0], 1))
        return ((first + np.arange(shape[1])) % count).astype(np.float32)

    def sample(self, name: str) -> bytes:
        """Its name: no two tensors are equal. Raises TensorNotFoundError."""
        self.shape(name)
        return name.encode()

    def nbytes(self) -> int:
        """0: nothing is stored."""
        return 0

    def side_files(self) -> dict[str, bytes]:
        """Those beside config.json, if there is one."""
        path, config_file = self._home
        return {} if path is None or config_file is None else read_side_files(path, config_file)


def generator(seed: int, name: str) -> np.random.Generator:
    """The generator of one tensor: independent of every other name and seed."""
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
