"""How far one next-token distribution is from another, and how likely it finds the next token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmnn.errors import RequestError
from deepmnn.formats import F32

F64 = NDArray[np.float64]

_PART = 1 << 17
"""Numbers that are computed in float64 at a time: 1 MB stays in a core's cache."""


@dataclass(frozen=True)
class Divergence:
    """KL divergences of many tokens, in nats, and how often the first choice is the same.

    mean, median, largest; percentile_90: 90 % of the tokens are below it; percentile_99 likewise.
    mean_error: standard error of the mean, tokens taken as independent.
    same_first_choice: share of the tokens, 0 to 1, whose most likely next token is the same.
    """

    tokens: int
    mean: float
    mean_error: float
    median: float
    percentile_90: float
    percentile_99: float
    largest: float
    same_first_choice: float

    @classmethod
    def of(cls, found: F64, same: NDArray[np.bool_]) -> Divergence:
        """Sums up what `Rows` gives: [tokens] both, not empty."""
        middle, high, higher = np.quantile(found, (0.5, 0.9, 0.99)).tolist()
        return cls(
            len(found),
            float(found.mean()),
            standard_error(found),
            middle,
            high,
            higher,
            float(found.max()),
            float(same.mean()),
        )


class Rows:
    """Next-token distributions: logits [rows, vocab_size], a constant added to a row changes none.

    Computed in float64 by parts of a megabyte.
    """

    def __init__(self, logits: F32) -> None:
        self._logits = logits
        self._norms = np.empty(len(logits))
        with np.errstate(invalid="ignore", over="ignore"):
            for part in _parts(logits):
                top = logits[part].max(axis=1).astype(np.float64)
                below = _shifted(logits[part], top)
                self._norms[part] = top + np.log(np.exp(below, out=below).sum(axis=1))

    def surprisal(self, tokens: Sequence[int]) -> F64:
        """Negative log-likelihood of each token in the place of its row, [len(tokens)], in nats.

        Rows behind the last token are not read. Raises RequestError for NaN or infinities.
        """
        picked = self._logits[np.arange(len(tokens)), list(tokens)]
        found: F64 = self._norms[: len(tokens)] - picked
        _check_finite(found, {"model": self._logits})
        return found

    def divergence(self, other: Rows) -> F64:
        """KL(self || other) of each row, [rows], in nats; self is the reference.

        Raises RequestError when the shapes differ, and for NaN or infinities.
        """
        wanted, given = self._logits, other._logits
        if wanted.shape != given.shape:
            raise RequestError(
                f"the reference has logits of shape {wanted.shape}, the model {given.shape}",
                "the same tokens and the same vocabulary",
            )
        found = other._norms - self._norms
        with np.errstate(invalid="ignore", over="ignore"):
            for part in _parts(wanted):
                likely = _shifted(wanted[part], self._norms[part])
                apart = wanted[part].astype(np.float64)
                apart -= given[part]
                found[part] += np.einsum("ij,ij->i", np.exp(likely, out=likely), apart)
        _check_finite(found, {"reference": wanted, "model": given})
        return np.maximum(found, 0.0)  # rounding may leave -1e-16

    def same_first_choice(self, other: Rows) -> NDArray[np.bool_]:
        """Whether the most likely next token is the same, [rows]."""
        same: NDArray[np.bool_] = self._logits.argmax(axis=1) == other._logits.argmax(axis=1)
        return same


def divergence(reference: F32, logits: F32) -> F64:
    """KL(reference || logits) of the next token's distribution, [rows], in nats.

    Both are [rows, vocab_size]: logits, or log probabilities. Raises as `Rows.divergence`.
    """
    return Rows(reference).divergence(Rows(logits))


def standard_error(values: F64) -> float:
    """Of the mean of values, taken as independent; 0 for a single one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _shifted(logits: F32, constants: F64) -> F64:
    """Rows of float64 less a constant each."""
    rows: F64 = logits.astype(np.float64)
    rows -= constants[:, None]
    return rows


def _parts(logits: F32) -> Iterator[slice]:
    rows = max(1, _PART // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))


def _check_finite(found: F64, given: dict[str, F32]) -> None:
    """Raises RequestError where a result is no finite number, and says whose logits are none."""
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        row = int(wrong[0])
        whose = [name for name, logits in given.items() if not np.isfinite(logits[row]).all()]
        names = " and the ".join(whose or given)
        raise RequestError(
            f"row {row} of the logits of the {names} has NaN or infinity",
            "finite numbers",
            "The weights are damaged, or too large for their format.",
        )
