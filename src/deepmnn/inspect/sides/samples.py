"""What samples of token ids may be."""

from __future__ import annotations

from collections.abc import Sequence

from deepmnn.backends.base import I32
from deepmnn.errors import RequestError


def check_samples(samples: Sequence[I32], vocab_size: int) -> None:
    """Raises RequestError unless there are samples, and all of their ids are in the vocabulary."""
    if not samples or any(not len(sample) for sample in samples):
        raise RequestError("a sample without tokens", "at least one token in each, and one sample")
    for sample in samples:
        wrong = sample[(sample < 0) | (sample >= vocab_size)]
        if len(wrong):
            raise RequestError(f"token id {wrong[0]}", f"ids from 0 to {vocab_size - 1}")
