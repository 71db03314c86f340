"""Quick measurements of a loaded model: its speed, and token ids to judge it by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from deepmnn.errors import RequestError
from deepmnn.measure.benchmark import Report, benchmark

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM

PROMPT, NEW, BATCHES, REPEAT = 128, 32, (1, 4), 3
"""Tokens of a prompt and of an answer, prompts side by side, and timed runs."""

CACHE_TOKENS = max(BATCHES) * (PROMPT + NEW + 32)
"""Rows of the KV cache that they need."""

_PIECES, _PIECE = 4, 128


def speed(model: LLM, progress: Callable[[str], None] | None = None) -> Report:
    """Prefill and decode, shorter where the model's context is."""
    longest = model.engine.context_length
    prompt = max(1, min(PROMPT, longest * 3 // 4))
    new = max(1, min(NEW, longest - prompt))
    most = model.backend.max_sequences
    batches = [size for size in BATCHES if most is None or size <= most]
    return benchmark(model, [prompt], new, batches, REPEAT, progress)


def random_pieces(model: LLM) -> list[list[int]]:
    """Token ids for a model without a tokenizer: they say how far two models are apart."""
    size = min(_PIECE, model.context_length)
    if size < 2:
        raise RequestError(f"the model's context is {size} token", "two tokens at least")
    rng = np.random.default_rng(0)
    found: list[list[int]] = rng.integers(0, model.vocab_size, (_PIECES, size)).tolist()
    return found
