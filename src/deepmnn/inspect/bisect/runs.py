"""Runs a model under settings and judges its answers; every run is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import deepmnn
from deepmnn.api.options import LoadOptions
from deepmnn.backends.base import F32, I32
from deepmnn.errors import RequestError
from deepmnn.inspect.bisect.schedule import scheduled_logits
from deepmnn.inspect.bisect.setting import Setting, Switch, switched_off
from deepmnn.inspect.bisect.variant import Variants
from deepmnn.inspect.compare.compare import LOGITS
from deepmnn.inspect.compare.difference import relative
from deepmnn.inspect.side import Side
from deepmnn.inspect.sides.subject import Subject
from deepmnn.quant.divergence import divergence

Progress = Callable[[int, int, str], None]
"""Called with (runs done, runs in all as far as is known, what is tried)."""

Logits = Callable[[Setting], F32]
"""The logits of the samples under a setting, [tokens, vocab_size]."""


@dataclass(frozen=True)
class Trial:
    """A run: what was switched off, and how far the answers then were.

    Attributes:
        off: the switches, by name; empty: the model as it is.
        error: of the logits, relative to the reference's; infinite for one that is no number.
        divergence: mean KL of the next token, in nats; infinite likewise.
    """

    off: tuple[str, ...]
    error: float
    divergence: float


class Runs:
    """Trials of one model.

    Args:
        wanted: the reference's logits.
        bound: of the relative error, that a trial is to stay below.
        progress: called before each run.
    """

    def __init__(self, wanted: F32, bound: float, progress: Progress | None) -> None:
        self._wanted, self._bound, self._progress = wanted, bound, progress
        self._left = 0
        self.trials: list[Trial] = []

    def expect(self, runs: int) -> None:
        """About so many runs are still to come."""
        self._left = runs

    def trial(self, logits: Logits, setting: Setting, off: Sequence[Switch]) -> Trial:
        """Runs with some switches off."""
        names = tuple(switch.name for switch in off)
        if self._progress is not None:
            words = f"without {', '.join(names)}" if names else "as it is"
            done = len(self.trials)
            self._left = max(self._left - 1, 1)
            self._progress(done, done + self._left, f"run {done + 1}: {words:.60}")
        found = logits(switched_off(setting, off))
        made = Trial(names, *self._judged(found))
        self.trials.append(made)
        return made

    def works(self, logits: Logits, setting: Setting, off: Sequence[Switch]) -> bool:
        """Whether the error is under the bound."""
        return self.trial(logits, setting, off).error <= self._bound

    def _judged(self, found: F32) -> tuple[float, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            apart = float(np.square(found - self._wanted, dtype=np.float64).sum())
        if not np.isfinite(apart):
            return np.inf, np.inf
        error = relative(apart, float(np.square(self._wanted, dtype=np.float64).sum()))
        return error, float(divergence(self._wanted, found).mean())


def side_logits(side: Side, samples: Sequence[I32]) -> F32:
    """Of a side, one layer in memory at a time."""
    found: F32 | None = None
    for layer in side.layers(samples):
        found = layer.get(LOGITS, found)
    if found is None:
        raise RequestError(f"{side.label} gives no logits", "a model that does")
    return found


def by_layers(variants: Variants, samples: Sequence[I32]) -> Logits:
    """Runs variants of a model layer by layer; their schedule does not matter."""
    return lambda setting: side_logits(variants.side(setting), samples)


_BLOCK = 128
"""Tokens of a cache block at most: the last one of a sample is rarely full."""


def by_whole(model: Subject, samples: Sequence[I32]) -> Logits:
    """Runs the model as `deepmnn.load` does; what changes its graph does not matter."""
    rows = sum(len(sample) + _BLOCK for sample in samples)

    def logits(setting: Setting) -> F32:
        options = LoadOptions(
            backend=setting.backend or model.options.backend,
            quant=model.options.quant,
            kv_dtype=setting.kv_dtype,
            isa=setting.isa,
            threads=setting.threads,
            mla_form=setting.mla_form,
            cache_tokens=rows,
        )
        loaded = deepmnn.load(model.name, options=options)
        return scheduled_logits(loaded, samples, setting.schedule)

    return logits
