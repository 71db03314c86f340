"""How the next token is chosen from the logits."""

from __future__ import annotations

import numpy as np

from deepmnn.backends.base import F32, Draw
from deepmnn.text.constraint import Constraint
from deepmnn.text.sampling_params import SamplingParams


class Sampler:
    """How the tokens of one sequence are drawn; holds its random numbers."""

    def __init__(self, params: SamplingParams, constraint: Constraint | None = None) -> None:
        self.params = params
        self._constraint = constraint
        self._random = np.random.default_rng(params.seed)
        self._has_penalty = params.has_penalty

    def draw(self, logits: F32, ids: list[int], prompt_tokens: int) -> Draw:
        """For the next token. logits: [vocab_size]; ids: the prompt and the answer so far."""
        params = self.params
        if self._has_penalty:
            logits = penalize(logits, ids, prompt_tokens, params)
        if self._constraint is not None:
            logits = self._constraint.mask(logits)
        # In float32, as the core takes it: a double just below 1 would round up to 1.
        u = float(self._random.random(dtype=np.float32)) if params.temperature > 0 else 0.0
        top_k = min(params.top_k, len(logits))
        return logits, params.temperature, top_k, params.top_p, params.min_p, u


def penalize(logits: F32, ids: list[int], prompt_tokens: int, params: SamplingParams) -> F32:
    """A copy of logits [vocab_size] with the penalties applied.

    Repetition counts prompt and answer; presence and frequency count the answer only.
    """
    out = logits.copy()
    seen = np.unique(np.asarray(ids))
    picked = out[seen]
    penalty = params.repetition_penalty
    out[seen] = np.where(picked > 0, picked / penalty, picked * penalty)
    answer, counts = np.unique(np.asarray(ids[prompt_tokens:], np.int64), return_counts=True)
    out[answer] -= params.presence_penalty + params.frequency_penalty * counts
    return out
