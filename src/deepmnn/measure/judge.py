"""Judges a model on a text: perplexity, and how far it is from a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import F32
from deepmnn.errors import RequestError
from deepmnn.measure.predictions import Predict
from deepmnn.quant.divergence import (
    F64,
    Divergence,
    Rows,
    standard_error,
)


@dataclass(frozen=True)
class Perplexity:
    """How well a model expects a text.

    tokens: those that were predicted. loss: mean negative log-likelihood of them, in nats.
    loss_error: its standard error, tokens taken as independent. perplexity: exp(loss).
    perplexity_error: perplexity times loss_error.
    """

    tokens: int
    loss: float
    loss_error: float
    perplexity: float
    perplexity_error: float

    @classmethod
    def of(cls, losses: F64) -> Perplexity:
        """Of the negative log-likelihood of each token."""
        loss, error = float(losses.mean()), standard_error(losses)
        value = math.exp(loss) if loss < 700 else math.inf
        return cls(len(losses), loss, error, value, value * error)


@dataclass(frozen=True)
class Judgement:
    """What judging a model on a text gives; the last four are None without a reference.

    pieces, tokens: how many were read. loss_change: the model's loss minus the reference's, in
    nats; its standard error is that of the differences of each token, far smaller than those of
    the two losses. perplexity_ratio: exp(loss_change).
    """

    pieces: int
    tokens: int
    model: Perplexity
    reference: Perplexity | None
    divergence: Divergence | None
    loss_change: float | None
    loss_change_error: float | None

    @property
    def perplexity_ratio(self) -> float | None:
        """The model's perplexity over the reference's."""
        return None if self.loss_change is None else math.exp(min(self.loss_change, 700))


def judge(
    predict: Predict,
    pieces: Sequence[Sequence[int]],
    reference: Predict | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Judgement:
    """Reads every piece, each in a context of its own.

    Args:
        predict: the model (`predictions`).
        pieces: token ids, two or more of them in each (`cut`).
        reference: what it should be like.
        progress: called with (tokens read, tokens in all, "") after each piece.

    Every token but the first of its piece counts for perplexity. The divergence is that of the
    next token after every token, the last one included.

    Raises RequestError when there is nothing to predict, when the two have different vocabularies,
    and when logits are no finite numbers; ContextLengthError when a piece does not fit.
    """
    if not pieces or min(map(len, pieces)) < 2:
        raise RequestError(
            "the text has no piece of two tokens", "a longer text", "One token predicts nothing."
        )
    total, tally = sum(map(len, pieces)), _Tally()
    for number, ids in enumerate(pieces, 1):
        try:
            _read(tally, predict, ids, reference)
        except RequestError as error:
            if len(pieces) == 1:
                raise
            raise type(error)(
                f"piece {number}: {error.found}", error.expected, error.hint
            ) from None
        if progress:
            progress(tally.tokens, total, "")
    return tally.judgement(len(pieces))


@dataclass
class _Tally:
    """The figures of each token so far."""

    tokens: int = 0
    losses: list[F64] = field(default_factory=list)
    wanted: list[F64] = field(default_factory=list)
    divergences: list[F64] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, logits: F32, reference: F32 | None, following: Sequence[int]) -> None:
        """Rows of a piece and the tokens that come after each of them."""
        self.tokens += len(logits)
        found = Rows(logits)
        if reference is not None:
            truth = Rows(reference)
            self.divergences.append(truth.divergence(found))
            self.same.append(truth.same_first_choice(found))
            self.wanted.append(truth.surprisal(following))
        self.losses.append(found.surprisal(following))

    def judgement(self, pieces: int) -> Judgement:
        """The sum of it."""
        losses = np.concatenate(self.losses)
        model = Perplexity.of(losses)
        if not self.wanted:
            return Judgement(pieces, self.tokens, model, None, None, None, None)
        wanted = np.concatenate(self.wanted)
        change = losses - wanted
        return Judgement(
            pieces,
            self.tokens,
            model,
            Perplexity.of(wanted),
            Divergence.of(np.concatenate(self.divergences), np.concatenate(self.same)),
            float(change.mean()),
            standard_error(change),
        )


def _read(tally: _Tally, predict: Predict, ids: Sequence[int], reference: Predict | None) -> None:
    begin = 0
    pairs: Iterable[tuple[F32, F32 | None]] = (
        zip(predict(ids), repeat(None))  # the second one has no end
        if reference is None
        else zip(predict(ids), reference(ids), strict=True)
    )
    for logits, truth in pairs:
        tally.add(logits, truth, ids[begin + 1 : begin + len(logits) + 1])
        begin += len(logits)
