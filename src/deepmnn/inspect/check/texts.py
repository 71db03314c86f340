"""The two sets of texts that a calibration check compares, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.conversion.calibration_set import MAX_TOKENS, has_tokenizer
from deepmnn.errors import RequestError, TokenizerError, Words
from deepmnn.inspect.check.kinds import kind_of
from deepmnn.models import read_config
from deepmnn.source.source import Source
from deepmnn.text.samples import Sample, built_in, read_samples, sample_ids
from deepmnn.text.text_files import SourceFiles
from deepmnn.text.tokenizer import Tokenizer

BUILT_IN = "built-in"
"""Names the set that comes with deepmnn."""

LEAST = 8
"""Texts of a calibration set: fewer do not say how far texts are from one another by chance."""

CHAT, IDS = "chat", "token ids"


@dataclass(frozen=True)
class Text:
    """One text: its ids, what it begins with, and what it looks like."""

    ids: I32
    beginning: str
    kind: str


def read_texts(source: Source, path: Path | None, count: int, seed: int = 0) -> list[Text]:
    """Texts of a file as the model reads them, at most MAX_TOKENS of each.

    Args:
        source: the model.
        path: JSON Lines or plain text (text/samples.py); or token ids, an array of integers in a
            .npy file, a row a text; None: the set that comes with deepmnn.
        count: texts, at most.
        seed: of their order.

    Raises RequestError for a file that holds none, or ids that the model does not have,
    TokenizerError for text and a model without a tokenizer.
    """
    config = read_config(source.config)
    most = min(MAX_TOKENS, config.context_length)
    if path is not None and path.suffix.lower() == ".npy":
        found = _of_array(path, count, most)
    else:
        samples = built_in(count, seed) if path is None else read_samples(path, count, seed)
        found = _of_samples(source, samples, most, path)
    largest = max((int(text.ids.max()) for text in found), default=-1)
    least = min((int(text.ids.min()) for text in found), default=0)
    if least < 0 or not 0 <= largest < config.vocab_size:
        raise RequestError(
            f"{path or BUILT_IN} holds no token"
            if largest < 0
            else f"{path or BUILT_IN} holds the token id {least if least < 0 else largest}",
            f"ids from 0 to {config.vocab_size - 1}, the model's",
            "Check that the tokenizer, or the file of ids, belongs to this model.",
        )
    return found


def _of_samples(source: Source, samples: list[Sample], most: int, path: Path | None) -> list[Text]:
    if not has_tokenizer(source):
        raise TokenizerError(
            f"the model has no tokenizer, and {path or BUILT_IN} is text",
            "token ids in a .npy file, a row for each text",
            Words("Write them with numpy.save.", "Write them with numpy.save."),
        )
    tokenizer = Tokenizer(SourceFiles(source, source.paths[0] if source.paths else Path()))
    found = []
    for sample in samples:
        ids = np.array(sample_ids(sample, tokenizer, most), np.int32)
        if ids.size:
            whole = sample.text or "\n".join(str(m["content"]) for m in sample.messages)
            kind = kind_of(whole)
            found.append(Text(ids, whole, f"{kind} {CHAT}" if sample.messages else kind))
    return found


def _of_array(path: Path, count: int, most: int) -> list[Text]:
    """Raises RequestError for what is no array of integers."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as fault:
        raise RequestError(f"{path} cannot be read: {fault}", "token ids, by numpy.save") from None
    rows = np.atleast_2d(array)
    if not np.issubdtype(rows.dtype, np.integer) or rows.ndim != 2:
        raise RequestError(
            f"{path} is {array.dtype} {list(array.shape)}", "integers, a row for each text"
        )
    return [
        Text(row[:most].astype(np.int32), " ".join(map(str, row[:8])), IDS)
        for row in rows[:count]
        if row.size
    ]
