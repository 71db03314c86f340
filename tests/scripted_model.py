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
    """says: the reasoning and the text of the next answers. pause: seconds of a step."""

    def __init__(self, model: LLM) -> None:
        super().__init__(model.vocab_size)
        self._tokenizer = model.tokenizer
        self._begin = self._tokenizer.token_id(MARKS[1])
        self.pause = 0.0
        self.says("")

    def says(self, text: str) -> None:
        """What follows "<think>" and a line break."""
        turn = f"<think>\n{text}"
        self._turn = [*self._tokenizer.encode(turn, add_special_tokens=False), _END]

    def logits_after(self, ids: list[int]) -> F32:
        logits = np.zeros(self.vocab_size, np.float32)
        if self._begin in ids:
            said = ids[::-1].index(self._begin)
            logits[self._turn[min(said, len(self._turn) - 1)]] = 9
        return logits

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
