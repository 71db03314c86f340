"""The token ids that a model is looked at with."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.errors import RequestError
from deepmnn.inspect.sides.samples import check_samples
from deepmnn.measure.texts import built_in_texts, cut, read_texts
from deepmnn.text.tokenizer import Tokenizer

PIECE = 128
"""Tokens of a sample, where the model's context holds as many."""

MOST_TOKENS = 1 << 20
"""Of a file of token ids."""

_SEED = 20

_FILE_NAME = re.compile(r"\S*/\S*|\S+\.(npy|bin|txt|md|json|jsonl|ndjson)")


def read_samples(
    given: str | None,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    context_length: int,
    tokens: int,
) -> list[I32]:
    """Samples of at most PIECE tokens, `tokens` in all at most, each at least two.

    Args:
        given: the name of a file of token ids (.npy; .bin: int32), of a text or JSON Lines
            (measure/texts.py), or a text itself. None: text that is built in, or random ids where
            there is no tokenizer.
        tokenizer: of the model; None: it has none.
        vocab_size, context_length: of the model.

    Raises RequestError: a file of something else, ids outside the vocabulary, a text without a
    tokenizer, nothing to read.
    """
    size = max(2, min(PIECE, context_length, tokens))
    path = None if given is None else named_file(given)
    if path is not None and path.suffix in (".npy", ".bin"):
        ids = read_ids(path, vocab_size)
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    elif tokenizer is None:
        if given is not None:
            raise RequestError(
                "a text, and the model has no tokenizer", "token ids in a .npy or .bin file"
            )
        rng = np.random.default_rng(_SEED)
        pieces = list(rng.integers(0, vocab_size, (-(-tokens // size), size), np.int32))
    else:
        if path is not None:
            texts = [read_texts(path)]
        else:
            texts = built_in_texts() if given is None else [[given]]
        most = -(-tokens // size // len(texts))
        pieces = [np.array(p, np.int32) for t in texts for p in cut(tokenizer, t, size, most)]
    samples = _bounded([piece for piece in pieces if len(piece) > 1], tokens)
    if not samples:
        raise RequestError("the input has no two tokens", "a longer one")
    check_samples(samples, vocab_size)
    return samples


def read_ids(path: Path, vocab_size: int) -> I32:
    """The token ids of a file: .npy, whole numbers; .bin: int32, one after another.

    Raises RequestError.
    """
    try:
        if path.suffix == ".npy":
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.stat().st_size % 4 == 0:
            found = np.memmap(path, np.int32, "r") if path.stat().st_size else np.empty(0, np.int32)
        else:
            raise ValueError(f"{path.stat().st_size} bytes")
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(
            f"{path} holds no token ids: {error!s:.100}", "a .npy file, or int32 numbers"
        ) from None
    if not np.issubdtype(found.dtype, np.integer) or found.size > MOST_TOKENS:
        raise RequestError(
            f"{path} holds {found.size} {found.dtype}", f"at most {MOST_TOKENS} whole numbers"
        )
    ids = np.array(found).reshape(-1)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise RequestError(
            f"{path} has token ids from {ids.min()} to {ids.max()}",
            f"0 to {vocab_size - 1}, the model's vocabulary",
            "The ids are another tokenizer's.",
        )
    return ids.astype(np.int32)


def named_file(given: str) -> Path | None:
    """The file that has this name; None: it is a text.

    Raises RequestError for what looks like the name of a file that is missing.
    """
    try:
        if os.path.isfile(given):
            return Path(given)
    except ValueError:  # a text with a null character
        return None
    if _FILE_NAME.fullmatch(given):
        raise RequestError(
            f"the input {given!r:.80} looks like a file's name, and there is no such file",
            "a file that exists, or a text",
            "Check the path.",
        )
    return None


def _bounded(pieces: list[I32], tokens: int) -> list[I32]:
    """As many of them as hold so many tokens, the last one cut."""
    kept: list[I32] = []
    for piece in pieces:
        left = tokens - sum(map(len, kept))
        if left > 1:
            kept.append(piece[:left])
    return kept
