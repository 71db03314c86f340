"""What a model expects after each token of a text, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from deepmnn.backends.base import F32

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM

ROWS = 512
"""Rows of logits at a time: with a vocabulary of 129,280 they are 265 MB."""

Predict = Callable[[Sequence[int]], Iterator[F32]]
"""Takes the tokens of a fresh context; gives the logits after each of them, in order, ROWS rows
[ROWS, vocab_size] at a time (the last ones are fewer)."""


def predictions(model: LLM) -> Predict:
    """Those of a loaded model. They raise RequestError or ContextLengthError."""

    def predict(ids: Sequence[int]) -> Iterator[F32]:
        with model.session() as session:
            for start in range(0, len(ids), ROWS):
                yield session.logits(ids[start : start + ROWS])

    return predict
