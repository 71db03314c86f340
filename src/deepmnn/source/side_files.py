"""The small files of a model: config.json, and what the tokenizer and generation are made of."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepmnn.errors import CheckpointError, DeepmnnError, Words
from deepmnn.source.json_file import parse_object, read_small

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"

SIDE_FILES = (
    "generation_config.json",
    TOKENIZER,
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

OTHER_TOKENIZERS = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tiktoken.model",
    "qwen.tiktoken",
    "tekken.json",
)
"""What a tokenizer is stored in without tokenizer.json."""


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
    found = _beside(path, config, SIDE_FILES)
    return {CONFIG: _read(config, error)} | {f.name: read_small(f, error) for f in found}


def check_tokenizer(path: Path, config: Path) -> None:
    """Raises CheckpointError when there is a tokenizer, and not in tokenizer.json: a model without
    any is of use, but whoever has one wants it to be converted, too.
    """
    names = [file.name for file in _beside(path, config, (*SIDE_FILES, *OTHER_TOKENIZERS))]
    others = [name for name in OTHER_TOKENIZERS if name in names]
    if others and TOKENIZER not in names:
        folder = path if os.path.isdir(path) else path.parent
        raise CheckpointError(
            f"the tokenizer in {folder} is stored as {', '.join(others)}",
            TOKENIZER,
            'Let transformers write it: python -c "from transformers import AutoTokenizer; '
            "AutoTokenizer.from_pretrained('DIR').save_pretrained('DIR')\"; or move those files "
            "away to convert without a tokenizer.",
        )


def config_path(path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None) -> Path:
    """The config.json of weights: the one beside them, unless `config` (or its directory) is."""
    home = Path(path) if config is None else Path(config)
    if config is None and not os.path.isdir(home):
        home = home.parent
    return home / CONFIG if os.path.isdir(home) else home


def read_config(config: Path) -> dict[str, Any]:
    """The fields of a config.json. Raises CheckpointError."""
    return parse_object(_read(config, CheckpointError), str(config), CheckpointError)


def _read(config: Path, error: type[DeepmnnError]) -> bytes:
    if not os.path.lexists(config):
        raise error(
            f"{config} is missing",
            f"a checkpoint directory with {CONFIG}, or that file",
            Words(
                "Check the path; `config` may name another file or directory.",
                "Check the path, or fetch a checkpoint: deepmnn pull OWNER/NAME OUT; "
                "deepmnn convert --config takes the file from elsewhere.",
            ),
        )
    return read_small(config, error)


def _beside(path: Path, config: Path, names: Iterable[str]) -> list[Path]:
    """Those files that are there, all in one folder."""
    for folder in (path if os.path.isdir(path) else path.parent, config.parent):
        if found := [folder / name for name in names if os.path.lexists(folder / name)]:
            return found
    return []
