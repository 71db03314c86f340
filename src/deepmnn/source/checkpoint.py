"""Opens a checkpoint: config.json plus weights in one of the FORMATS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from deepmnn.errors import CheckpointError, TensorNotFoundError
from deepmnn.graph.weights import F32
from deepmnn.source.codecs import fp8
from deepmnn.source.file_store import FileStore
from deepmnn.source.json_file import read_object
from deepmnn.source.safetensors import FP8
from deepmnn.source.safetensors_store import SafetensorsStore
from deepmnn.source.torch_store import TorchStore

CONFIG = "config.json"


class Store(Protocol):
    """One weight format: named tensors of a path."""

    def names(self) -> list[str]:
        """Every tensor's name."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        ...

    def dtype(self, name: str) -> str:
        """A tensor's stored type, in safetensors' words. Raises TensorNotFoundError."""
        ...

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        ...

    def sample(self, name: str) -> bytes:
        """A little of a tensor's stored bytes. Raises TensorNotFoundError."""
        ...

    def read(self, name: str) -> F32:
        """A tensor as float32. Raises TensorNotFoundError."""
        ...


FORMATS: tuple[type[FileStore[Any]], ...] = (SafetensorsStore, TorchStore)
"""Weight formats in the order they are tried; a new format is a Store with `matches`."""


class Checkpoint:
    """A model as published: its config and its tensors, decoded to float32 (a TensorSource).

    FP8 weights come with their block scales applied; the scales are not tensors of their own.
    """

    def __init__(self, path: Path, config: dict[str, Any], store: Store) -> None:
        self.path = path
        self.config = config
        self._store = store
        self._block = fp8.block_size(config)
        self._fp8_config = config.get("quantization_config") is not None
        self._all = frozenset(store.names())

    def names(self) -> list[str]:
        """The tensors' names, without FP8 scales."""
        return [name for name in self._store.names() if not self._is_scale(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises TensorNotFoundError."""
        return self._store.shape(name)

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return self._store.nbytes()

    def sample(self, name: str) -> bytes:
        """A little of a tensor's stored bytes, at the same places in all tensors of one size:
        tells most unequal tensors apart without reading them. Raises TensorNotFoundError.
        """
        return self._store.sample(name)

    def read(self, name: str) -> F32:
        """The tensor as float32, FP8 scales applied. Raises TensorNotFoundError."""
        weight = self._store.read(name)
        if self._store.dtype(name) not in FP8:
            return weight
        scale_name = name + fp8.SCALE_SUFFIX
        if scale_name in self._all:
            return fp8.dequantize(name, weight, self._store.read(scale_name), self._block)
        if self._fp8_config:
            raise TensorNotFoundError(
                f"{self.path} has no tensor {scale_name!r}",
                f"the block scales of the FP8 weight {name!r}",
                "The checkpoint is incomplete; download it again.",
            )
        return weight

    def _is_scale(self, name: str) -> bool:
        return name.endswith(fp8.SCALE_SUFFIX) and name[: -len(fp8.SCALE_SUFFIX)] in self._all


def open_checkpoint(
    path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Opens a checkpoint.

    Args:
        path: a directory with weights in one of the FORMATS, or a file of such.
        config: config.json, or its directory; by default the one beside the weights.

    Raises CheckpointError (nothing readable there, damaged files), UnsupportedModelError
    (weights quantised in a way that is not read) or MissingDependencyError.
    """
    source = Path(path)
    store = next((store for store in FORMATS if store.matches(source)), None)
    if not source.is_dir() and store is None:
        raise CheckpointError(
            f"{source} is {'a file' if source.exists() else 'missing'}",
            f"a checkpoint directory with config.json and weights, or weights: {_formats()}",
        )
    if (source / "deepmnn.json").exists():
        raise CheckpointError(
            f"{source} is a converted model", "a checkpoint", "Use the original checkpoint."
        )
    fields = _read_fields(config_path(source, config))
    fp8.block_size(fields)
    if store is None:
        raise CheckpointError(
            f"{source} holds {_listing(source)}", f"weights in one of these formats: {_formats()}"
        )
    return Checkpoint(source, fields, store(source))


def config_path(
    source: str | os.PathLike[str], config: str | os.PathLike[str] | None = None
) -> Path:
    """The config.json of weights: the one beside them, unless `config` (or its directory) is."""
    home = Path(source) if config is None else Path(config)
    if config is None and not home.is_dir():
        home = home.parent
    return home / CONFIG if home.is_dir() else home


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """config.json of a directory, or a config file itself. Raises CheckpointError."""
    return _read_fields(config_path(path, path))


def _read_fields(target: Path) -> dict[str, Any]:
    if not target.exists():
        raise CheckpointError(
            f"{target} is missing",
            f"a checkpoint directory with {CONFIG}, or that file",
            "Check the path (--config names another), or fetch a checkpoint: "
            "deepmnn pull OWNER/NAME OUT",
        )
    return read_object(target, CheckpointError)


def _formats() -> str:
    return ", ".join(store.format_name for store in FORMATS)


def _listing(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return shown or "no files"
