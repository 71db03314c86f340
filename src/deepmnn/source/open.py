"""Opens a source, whatever a path turns out to hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError
from deepmnn.source.checkpoint import Checkpoint
from deepmnn.source.file_store import FileStore
from deepmnn.source.random import RandomSource, RandomWeights
from deepmnn.source.safetensors_store import SafetensorsStore
from deepmnn.source.side_files import CONFIG, config_path, read_config
from deepmnn.source.source import Source
from deepmnn.source.torch_store import TorchStore

STORES: tuple[type[FileStore[Any]], ...] = (SafetensorsStore, TorchStore)
"""Kinds of weight files in the order they are tried."""


def open_source(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    random: RandomWeights | None = None,
) -> Source:
    """Opens a model to convert.

    Args:
        path: a directory with weights of one of the STORES, or a file of such; with `random` a
            directory with config.json, or that file itself, is enough.
        config: config.json, or its directory; by default the one beside the weights.
        random: draws the weights instead of reading any.

    Raises CheckpointError (nothing readable there, damaged files), UnsupportedModelError
    (weights quantised in a way that is not read) or MissingDependencyError.
    """
    source = Path(path)
    if random is not None:
        config_file = config_path(source, config or source)
        fields = read_config(config_file)
        return RandomSource(random.shapes_of(fields), random.seed, fields, source, config_file)
    store = _store_of(source)
    if not source.is_dir() and store is None:
        raise CheckpointError(
            f"{source} is {'a file' if source.exists() else 'missing'}",
            f"a checkpoint directory with {CONFIG} and weights, or weights: {_kinds()}",
        )
    if (source / "deepmnn.json").exists():
        raise CheckpointError(
            f"{source} is a converted model", "a checkpoint", "Use the original checkpoint."
        )
    config_file = config_path(source, config)
    fields = read_config(config_file)
    if store is None:
        raise CheckpointError(
            f"{source} holds {_listing(source)}", f"weights in one of these formats: {_kinds()}"
        )
    return Checkpoint(source, fields, config_file, store(source))


def has_weights(path: str | os.PathLike[str]) -> bool:
    """Whether `open_source` finds weights there, sound or not."""
    return _store_of(Path(path)) is not None


def _store_of(path: Path) -> type[FileStore[Any]] | None:
    return next((store for store in STORES if store.matches(path)), None)


def _kinds() -> str:
    return ", ".join(store.format_name for store in STORES)


def _listing(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir())
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return shown or "no files"
