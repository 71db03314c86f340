"""Text that a model is judged by while it is converted: none of its weights are rounded by it.

The checkpoint's own predictions are computed in float32, stage by stage, and what its output head
reads is kept on disk. Any way of storing the weights is then compared with them, whatever the size
of the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepmnn.backends.base import I32
from deepmnn.conversion.forward import Progress, forward, read, staged
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.stage import Stage, stored_from
from deepmnn.quant.divergence import Divergence, Rows
from deepmnn.quant.recipe import RECIPES

MOST_SAMPLES, SHARE = 16, 8
"""Samples that are held out: so many, or one of so many where there are fewer."""


def split(samples: Sequence[I32]) -> tuple[list[I32], list[I32]]:
    """Samples to round by, and samples to judge by: none of fewer than SHARE."""
    held = min(MOST_SAMPLES, len(samples) // SHARE)
    return list(samples[held:]), list(samples[:held])


class HeldOut:
    """Samples, and what the checkpoint predicts on them.

    Args:
        plan: of the conversion; its formats do not matter.
        samples: token ids, at least one sample, at least one token in each.
        directory: for what is kept; it exists. Nothing that is there already is computed again.
        progress: called after every stage, here and in `divergence`.

    Raises CheckpointError, RequestError (activations that are no numbers) or StorageError.
    """

    def __init__(
        self,
        plan: Plan,
        samples: Sequence[I32],
        directory: Path,
        progress: Progress | None = None,
    ) -> None:
        self._samples, self._directory, self._progress = list(samples), directory, progress
        self._source = plan.source
        self._graphs = staged(plan.naive, RECIPES["fp32"])
        self._clean = forward(
            self._graphs, self._source, self._samples, directory / "float32", progress
        )

    def divergence(self, plan: Plan) -> Divergence:
        """How far the predictions of a plan's model are, its weights stored as it says."""
        graphs = staged(plan.naive, plan.recipe, plan.source)
        directory = self._directory / "rounded"
        shutil.rmtree(directory, ignore_errors=True)  # of another recipe
        found = forward(graphs, plan.source, self._samples, directory, self._progress)
        tokens = max(map(len, self._samples))
        exact = Stage(self._graphs[-1], stored_from(self._source), tokens, self._directory)
        rounded = Stage(graphs[-1], stored_from(plan.source), tokens, self._directory)
        last, (logits,) = len(graphs) - 1, graphs[-1].outputs
        divergences, same, first = [], [], 0
        for sample in self._samples:
            given = read(self._clean, last, exact, [sample], first)
            clean = Rows(exact.run([sample], given)[logits])
            given = read(found, last, rounded, [sample], first)
            other = Rows(rounded.run([sample], given)[logits])
            divergences.append(clean.divergence(other))
            same.append(clean.same_first_choice(other))
            first += len(sample)
        shutil.rmtree(directory, ignore_errors=True)
        return Divergence.of(np.concatenate(divergences), np.concatenate(same))
