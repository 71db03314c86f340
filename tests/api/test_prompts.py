"""Prompts as callers and other libraries hand them over."""

from __future__ import annotations

import pytest

from deepmnn import LLM
from deepmnn.errors import (
    ContextLengthError,
    RequestError,
)
from tiny_llm import CHAT, IDS


def test_impossible_prompts(model: LLM) -> None:
    impossible = ([], 5, [[]], [1.5], [[1], 2], None, [CHAT, 3], [-1], [10_000], CHAT[0], b"ab")
    for prompt in impossible:
        with pytest.raises(RequestError):
            model.generate(prompt)
        with pytest.raises(RequestError):
            model.stream(prompt)
    with pytest.raises(RequestError, match="SamplingParams"):
        model.generate(IDS, {"temperature": 1.0})
    for length in (192, 500):
        with pytest.raises(ContextLengthError, match="192") as caught:
            model.generate([1] * length)
        assert "cache_tokens" not in str(caught.value), "the context is full, not the cache"
    with pytest.raises(ContextLengthError):
        model.logits([1] * 193)
    with pytest.raises(RequestError):
        model.logits([])
    assert not model.engine.scheduler.busy
