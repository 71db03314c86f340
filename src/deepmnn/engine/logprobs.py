"""How likely the model found the tokens of an answer."""

from __future__ import annotations

import math

import numpy as np

from deepmnn.backends.base import F32
from deepmnn.engine.completion import TokenLogprobs


def token_logprobs(logits: F32, token: int, count: int) -> TokenLogprobs:
    """Of a token and of the `count` most likely ones. logits: [vocab_size], no NaN, no infinity."""
    below = np.subtract(logits, logits.max(), dtype=np.float64)  # the best one
    norm = math.log(np.exp(below).sum())
    top = {best: float(below[best]) - norm for best in most_likely(logits, count)}
    return TokenLogprobs(token, float(below[token]) - norm, top)


def most_likely(logits: F32, count: int) -> list[int]:
    """The tokens with the `count` largest logits [vocab_size], best first, then lower index."""
    count = min(count, len(logits))
    if count == 0:
        return []
    least = np.partition(logits, -count)[-count]
    tokens = np.flatnonzero(logits >= least)
    order = np.argsort(-logits[tokens], kind="stable")[:count]
    found: list[int] = tokens[order].tolist()
    return found
