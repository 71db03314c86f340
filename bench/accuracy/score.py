"""How far a model's next-token distributions are from those of the float32 model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError
from deepmnn.quant.divergence import Rows

ROWS = 64
"""Tokens scored together: a vocabulary of 129,280 tokens takes 66 MB for them in float64."""


@dataclass(frozen=True)
class Score:
    """Over every token of every piece.

    mean_kl, kl_99: KL(float32 model || model) in nats, its mean and the value that 99 % of the
    tokens stay below. same_first: the share of tokens with the same most likely next token.
    perplexity: of the text itself. tokens: how many.
    """

    mean_kl: float
    kl_99: float
    same_first: float
    perplexity: float
    tokens: int


class NotFiniteError(Exception):
    """A model gave logits that are no numbers."""


def score(
    wanted: Iterable[NDArray[np.float32]],
    found: Iterable[NDArray[np.float32]],
    pieces: Sequence[Sequence[int]],
) -> Score:
    """Compares two models' logits, [tokens, vocab_size] for each piece, read one after another.

    A vocabulary padded in one of the two is cut to the other's. Raises NotFiniteError, or
    ValueError if shapes do not belong together.
    """
    divergences, same, surprises = [], [], []
    for exact, model, ids in zip(wanted, found, pieces, strict=True):
        if len(exact) != len(ids) or len(model) != len(ids):
            raise ValueError(f"{len(exact)} and {len(model)} rows of logits for {len(ids)} tokens")
        vocab = min(exact.shape[1], model.shape[1])
        for begin in range(0, len(ids), ROWS):
            rows = slice(begin, begin + ROWS)
            reference, judged = Rows(exact[rows, :vocab]), Rows(model[rows, :vocab])
            try:
                divergences.append(reference.divergence(judged))
                surprises.append(judged.surprisal(ids[begin + 1 : begin + ROWS + 1]))
            except RequestError as error:
                raise NotFiniteError("its logits are not finite") from error
            same.append(reference.same_first_choice(judged))
    kl = np.concatenate(divergences)
    return Score(
        mean_kl=float(kl.mean()),
        kl_99=float(np.quantile(kl, 0.99)),
        same_first=float(np.concatenate(same).mean()),
        perplexity=float(np.exp(np.concatenate(surprises).mean())),
        tokens=len(kl),
    )
