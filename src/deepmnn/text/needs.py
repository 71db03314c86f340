"""What somebody needs of a model's text side, asked before a checkpoint is converted for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from deepmnn.errors import TokenizerError, Words
from deepmnn.source.gguf.splits import gguf_of
from deepmnn.source.open import is_converted
from deepmnn.source.weight_files import has_weights
from deepmnn.text.text_files import TextFiles
from deepmnn.text.tokenizer import FILE, Tokenizer

Needs = Literal["tokenizer", "chat template"]
"""A chat template comes with a tokenizer."""


def check_needs(
    needs: Needs | None, files: TextFiles, path: Path, read: Callable[[], Tokenizer]
) -> None:
    """Raises TokenizerError when a model has no sound tokenizer, or no chat template.

    Args:
        needs: what it must have.
        files: the model's.
        path: what its user calls it.
        read: makes the tokenizer of the files.
    """
    if needs is None:
        return
    if FILE not in files:
        raise TokenizerError(
            f"{path} has no tokenizer", "the one that it was trained with", _where(path, FILE)
        )
    if not read().has_chat_template and needs == "chat template":
        hint = _where(path, "chat_template.jinja")
        raise TokenizerError(
            f"{path} has no chat template",
            "one, for a conversation",
            Words(
                f"Pass the prompt as plain text. {hint}",
                f"Continue plain text: deepmnn generate --raw. {hint.shell}",
            ),
        )


def _where(path: Path, file: str) -> Words:
    """Where a file of the text side must be."""
    if is_converted(path):
        said = f"Convert the checkpoint again, with {file} beside its weights."
        return Words(said, said)
    if path.exists() and (has_weights(path) or gguf_of(path) is None):
        said = f"Put the model's {file} into {path if path.is_dir() else path.parent}."
        return Words(said, said)
    return Words(
        f"Convert it with config=DIR, a directory that holds the model's config.json and {file}.",
        f"Put the model's config.json and {file} into a directory, and convert with it: "
        f"deepmnn convert {path} OUT --config DIR",
    )
