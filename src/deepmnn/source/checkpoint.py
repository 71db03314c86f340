"""A checkpoint: config.json beside files of tensors, some of them perhaps in a quantised scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepmnn.formats import Codes
from deepmnn.graph.weights import F32
from deepmnn.source.codecs import codec_of
from deepmnn.source.side_files import read_side_files
from deepmnn.source.source import Source
from deepmnn.source.store import Store


class Checkpoint(Source):
    """A model as published: a Hugging Face directory, or a file of weights.

    Args:
        path: the directory or file.
        config: the fields of config.json.
        config_file: that file.
        store: the raw tensors; a codec makes the model's tensors of those that belong together.

    Raises UnsupportedModelError when the weights are quantised in a way that no codec reads.
    """

    def __init__(self, path: Path, config: dict[str, Any], config_file: Path, store: Store) -> None:
        self.path = path
        self.paths = (path, config_file)
        self.config = config
        self._config_file = config_file
        self._store = store
        self._codec = codec_of(config, store)
        self._parts = {} if self._codec is None else self._codec.parts()
        belonging = {part for parts in self._parts.values() for part in parts}
        plain = [name for name in store.names() if name not in belonging]
        self._names = dict.fromkeys([*plain, *self._parts])

    def names(self) -> list[str]:
        """The tensors that the codec makes, and those stored plainly."""
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        if self._codec is not None and name in self._parts:
            return self._codec.shape(name)
        return self._store.shape(name)

    def read(self, name: str) -> F32:
        """A tensor as float32, decoded. Raises TensorNotFoundError or CheckpointError."""
        if self._codec is not None and name in self._parts:
            return self._codec.read(name)
        return self._store.read(name)

    def codes(self, name: str) -> Codes | None:
        """What the codec can hand on without rounding."""
        if self._codec is not None and name in self._parts:
            return self._codec.codes(name)
        return None

    def sample(self, name: str) -> bytes:
        """Of all that a tensor is stored in. Raises TensorNotFoundError."""
        return b"".join(self._store.sample(part) for part in self._parts.get(name, (name,)))

    def nbytes(self) -> int:
        """Bytes of all raw tensors."""
        return self._store.nbytes()

    def side_files(self) -> dict[str, bytes]:
        """Those beside the weights, or beside config.json."""
        return read_side_files(self.path, self._config_file)
