"""Opens a source, whatever a path turns out to hold."""

from __future__ import annotations

import os
from pathlib import Path

from deepmnn.errors import CheckpointError
from deepmnn.source import weight_files
from deepmnn.source.checkpoint import Checkpoint
from deepmnn.source.gguf.source import GgufSource
from deepmnn.source.gguf.splits import gguf_of, models_in
from deepmnn.source.json_file import parse_object, read_object
from deepmnn.source.random import RandomSource, RandomWeights
from deepmnn.source.side_files import (
    CONFIG,
    check_tokenizer,
    config_path,
    read_config,
    read_side_files,
)
from deepmnn.source.source import Source
from deepmnn.source.store import Store

_MANIFEST = "deepmnn.json"
EXPORTED = "deepmnn-hf"
"""The format in the manifest of a checkpoint that deepmnn wrote (exporters/hf/)."""


def open_source(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    random: RandomWeights | None = None,
) -> Source:
    """Opens a model to convert.

    Args:
        path: a directory with weights of one of the kinds in weight_files.py or with one GGUF
            model, or a file of such; with `random` a directory with config.json, or that file
            itself, is enough.
        config: config.json, or its directory; by default the one beside the weights, or what a GGUF
            file says itself.
        random: draws the weights instead of reading any.

    Raises CheckpointError (nothing readable there, damaged files, a tokenizer that is not in
    tokenizer.json) or UnsupportedModelError (weights quantised in a way that is not read).
    """
    source = Path(path)
    if random is not None:
        config_file = config_path(source, config or source)
        fields = read_config(config_file)
        return RandomSource(random.shapes_of(fields), random.seed, fields, source, config_file)
    if is_converted(source):
        raise CheckpointError(
            f"{source} is a converted model", "a checkpoint", "Use the original checkpoint."
        )
    gguf = None if weight_files.has_weights(source) else gguf_of(source)
    if gguf is not None:
        return GgufSource(gguf, None if config is None else config_path(gguf, config))
    weight_files.check_path(source)
    config_file = config_path(source, config)
    files = read_side_files(source, config_file)
    fields = parse_object(files[CONFIG], str(config_file), CheckpointError)
    check_tokenizer(source, config_file)
    store = Store(source, tied=fields.get("tie_word_embeddings") is True)
    return Checkpoint((source, config_file), fields, files, store)


def is_converted(path: Path) -> bool:
    """Whether a directory has a manifest of ours that does not speak of a checkpoint."""
    manifest = path / _MANIFEST
    if not os.path.lexists(manifest):
        return False
    try:
        return read_object(manifest, CheckpointError).get("format") != EXPORTED
    except CheckpointError:
        return True


def has_weights(path: str | os.PathLike[str]) -> bool:
    """Whether `open_source` finds weights there, sound or not."""
    source = Path(path)
    if weight_files.has_weights(source):
        return True
    return bool(models_in(source)) if os.path.isdir(source) else gguf_of(source) is not None
