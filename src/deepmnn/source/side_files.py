"""The small files of a model: config.json, and what the tokenizer and generation are made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, DeepmnnError, Words
from deepmnn.source.json_file import read_object, read_small

CONFIG = "config.json"

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that go with a model as they are, where there are any."""


def read_side_files(
    path: Path, config: Path, error: type[DeepmnnError] = CheckpointError
) -> dict[str, bytes]:
    """config.json, and the SIDE_FILES that lie beside the weights, or beside config.json when there
    are none: files of two tokenizers are never mixed.

    Args:
        path: a directory, or a file of weights.
        config: config.json.
        error: raised when a file cannot be read.
    """
    files = {CONFIG: read_small(config, error)}
    for folder in (path if path.is_dir() else path.parent, config.parent):
        found = [folder / name for name in SIDE_FILES if (folder / name).is_file()]
        if found:
            return files | {file.name: read_small(file, error) for file in found}
    return files


def config_path(path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None) -> Path:
    """The config.json of weights: the one beside them, unless `config` (or its directory) is."""
    home = Path(path) if config is None else Path(config)
    if config is None and not home.is_dir():
        home = home.parent
    return home / CONFIG if home.is_dir() else home


def read_config(config: Path) -> dict[str, Any]:
    """The fields of a config.json. Raises CheckpointError."""
    if not config.exists():
        raise CheckpointError(
            f"{config} is missing",
            f"a checkpoint directory with {CONFIG}, or that file",
            Words(
                "Check the path; `config` may name another file or directory.",
                "Check the path, or fetch a checkpoint: deepmnn pull OWNER/NAME OUT; "
                "deepmnn convert --config takes the file from elsewhere.",
            ),
        )
    return read_object(config, CheckpointError)
