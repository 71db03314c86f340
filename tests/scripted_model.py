"""A model that says what it is told to, token by token: a script in place of weights.

Its tokenizer has one token a byte and DeepSeek-R1's chat template: answers begin with reasoning.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import deepmnn
from byte_tokenizer import MARKS
from deepmnn import LLM
from deepmnn.backends.base import F32, Batch
from deepmnn.conversion.convert import convert
from fake_backend import FakeBackend, FakeCache
from tiny_artifact import CONFIG, write_config

_END = 1
"""The token that ends an answer."""


class ScriptedBackend(FakeBackend):
    """pause: seconds of a step."""

    def __init__(self, model: LLM) -> None:
        super().__init__(model.vocab_size)
        self._tokenizer = model.tokenizer
        self.pause = 0.0
        self.says("")

    def says(self, text: str, behind: str = f"{MARKS[1]}<think>\n") -> None:
        """What the next answers say; behind: where prompts end, and nothing else does."""
        self._answer = [*self._ids(text), _END]
        self._behind = self._ids(behind)

    def logits_after(self, ids: list[int]) -> F32:
        logits = np.zeros(self.vocab_size, np.float32)
        mark, last = self._behind, self._behind[-1]
        for end in range(len(ids), len(mark) - 1, -1):
            if ids[end - 1] == last and ids[end - len(mark) : end] == mark:
                logits[self._answer[min(len(ids) - end, len(self._answer) - 1)]] = 9
                break
        return logits

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def step(self, cache: FakeCache, batch: Batch) -> F32:
        time.sleep(self.pause)
        return super().step(cache, batch)


def scripted_model(directory: Path) -> tuple[LLM, ScriptedBackend]:
    write_config(
        directory / "source", max_position_embeddings=4096, vocab_size=CONFIG["vocab_size"]
    )
    convert(directory / "source", directory / "model", quant="fp32", random_weights=True)
    model = deepmnn.load(directory / "model", "reference")
    model.backend = backend = ScriptedBackend(model)
    return model, backend
