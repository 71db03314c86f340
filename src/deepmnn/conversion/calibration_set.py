"""The text that a calibration runs through a model, as the model's own tokenizer reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.errors import RequestError, TokenizerError, Words
from deepmnn.models import read_config
from deepmnn.source.source import Source
from deepmnn.text.samples import COUNT, built_in, read_samples, sample_ids
from deepmnn.text.text_files import SourceFiles
from deepmnn.text.tokenizer import FILE as TOKENIZER
from deepmnn.text.tokenizer import Tokenizer

MAX_TOKENS = 512
"""Of a sample; what follows is left out."""


@dataclass(frozen=True)
class CalibrationSet:
    """Which samples, and how much of each.

    Attributes:
        path: a file of texts or conversations (text/samples.py); None: the set that comes with
            deepmnn.
        count: samples, at most.
        seed: of their order.
    """

    path: Path | None = None
    count: int = COUNT
    seed: int = 0

    def ids(self, source: Source) -> list[I32]:
        """Token ids of the samples, at most MAX_TOKENS and the model's context in each.

        Raises RequestError for a file that holds none, TokenizerError for a checkpoint without a
        tokenizer, or with one whose ids the model does not have.
        """
        if self.path is None:
            samples = built_in(self.count, self.seed)
        else:
            samples = read_samples(self.path, self.count, self.seed)
        config = read_config(source.config)
        try:
            files = SourceFiles(source, source.paths[0] if source.paths else Path())
            tokenizer = Tokenizer(files)
            most = min(MAX_TOKENS, config.context_length)
            found = [sample_ids(sample, tokenizer, most) for sample in samples]
        except TokenizerError as fault:
            raise TokenizerError(
                f"a calibration cannot read text: {fault.found}",
                fault.expected,
                Words(
                    "Without one: calibration=False rounds each weight to nearest.",
                    "Without one: --no-calibration rounds each weight to nearest.",
                ),
            ) from None
        ids = [np.array(sample, np.int32) for sample in found if sample]
        largest = max((int(sample.max()) for sample in ids), default=-1)
        if largest < 0 or largest >= config.vocab_size:
            raise RequestError(
                "a calibration set without a token" if largest < 0 else f"token id {largest}",
                f"ids below the model's vocab_size, {config.vocab_size}",
                "Check that the tokenizer belongs to this checkpoint.",
            )
        return ids


def has_tokenizer(source: Source) -> bool:
    """Whether a source can read text."""
    return TOKENIZER in source.side_files()
