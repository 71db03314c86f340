"""A checkpoint: config.json beside files of tensors, some of them perhaps in a quantised scheme."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, UnsupportedModelError
from deepmnn.formats import Codes, KeptCodes
from deepmnn.graph.weights import F32
from deepmnn.source.codecs import codec_of
from deepmnn.source.codecs.settings import described
from deepmnn.source.entry import FLOATS
from deepmnn.source.source import Source
from deepmnn.source.store import Store
from deepmnn.source.tensor_names import TABLE
from deepmnn.source.weight_files import adapters


class Checkpoint(Source):
    """A model as published: a Hugging Face directory, or a file of weights.

    Args:
        paths: the directory or file, and config.json.
        config: the fields of config.json.
        files: what side_files gives.
        store: the raw tensors; a codec makes the model's tensors of those that belong together.

    Raises UnsupportedModelError when the weights are quantised in a way that no codec reads,
    CheckpointError when one is stored plainly, too.
    """

    def __init__(
        self,
        paths: tuple[Path, Path],
        config: dict[str, Any],
        files: dict[str, bytes],
        store: Store,
    ) -> None:
        self.paths = paths
        self.path = paths[0]
        self.config = config
        self._files = files
        self._store = store
        home = self.path if os.path.isdir(self.path) else self.path.parent
        self._directories = (home, paths[1].parent)
        self._codec = codec_of(config, store, self._directories)
        self._parts = {} if self._codec is None else self._codec.parts()
        belonging = {part for parts in self._parts.values() for part in parts}
        plain = [name for name in store.names() if name not in belonging]
        self._check_once(plain)
        self._names = dict.fromkeys([*plain, *self._parts])

    def names(self) -> list[str]:
        """The tensors that the codec makes, and those stored plainly."""
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError, or UnsupportedModelError for a tensor of
        integers, or of floats that stand for nothing without a scale: codes, not numbers.
        """
        if self._codec is not None and name in self._parts:
            return self._codec.shape(name)
        self._check_numbers(name)
        return self._store.shape(name)

    def read(self, name: str) -> F32:
        """A tensor as float32, decoded. Raises TensorNotFoundError, CheckpointError, or
        UnsupportedModelError as `shape`.
        """
        if self._codec is not None and name in self._parts:
            return self._codec.read(name)
        self._check_numbers(name)
        return self._store.read(name)

    def codes(self, name: str) -> Codes | KeptCodes | None:
        """What the codec can hand on without rounding."""
        if self._codec is not None and name in self._parts:
            return self._codec.codes(name)
        return None

    def kept_format(self, name: str) -> str | None:
        """The codec's."""
        if self._codec is not None and name in self._parts:
            return self._codec.kept_format(name)
        return None

    def stored_as(self, name: str) -> str:
        """A plain tensor's type in safetensors' words; the codec's scheme. Raises
        TensorNotFoundError.
        """
        if self._codec is not None and name in self._parts:
            return self._codec.scheme
        return self._store.dtype(name)

    def sample(self, name: str) -> bytes:
        """Of all that a tensor is stored in. Raises TensorNotFoundError."""
        return b"".join(self._store.sample(part) for part in self._parts.get(name, (name,)))

    def nbytes(self) -> int:
        """Bytes of all raw tensors."""
        return self._store.nbytes()

    def side_files(self) -> dict[str, bytes]:
        """Those beside the weights, or beside config.json."""
        return self._files

    def left_out(self) -> list[str]:
        """Adapters beside the weights: they change the model that they are merged into."""
        return [name for name in adapters(self.path) if not name.endswith(".json")]

    def _check_once(self, plain: list[str]) -> None:
        """Raises CheckpointError when a tensor is stored plainly and coded: numbers of which none
        says which of them count.
        """
        if both := next((name for name in plain if name in self._parts), None):
            raise CheckpointError(
                f"{self.path} holds the weight {both!r:.200} twice: plainly, and coded in "
                f"{', '.join(self._parts[both]):.200}",
                "one of the two",
                "Take those out that are not meant, or convert from the original checkpoint.",
            )

    def _check_numbers(self, name: str) -> None:
        dtype = self._store.dtype(name)
        if dtype in FLOATS or (dtype in ("I64", "I32") and name.endswith(TABLE)):
            return
        stem = name.removesuffix("weight")
        beside = [n for n in self._store.names() if n.startswith(stem) and n != name][:3]
        known = described(self.config, self._directories)
        raise UnsupportedModelError(
            f"tensor {name!r:.200} is stored as {dtype}: codes of a quantised model, not numbers"
            + (f" ({known})" if known else "")
            + (f"; beside it: {', '.join(beside):.300}" if beside else ""),
            f"{', '.join(FLOATS)}, or FP8 with its scales",
            "Convert from the original checkpoint, before it was quantised.",
        )
