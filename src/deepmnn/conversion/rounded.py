"""A model whose weights have been rounded by a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deepmnn.backends.base import I32
from deepmnn.conversion.calibrate import Calibration, calibrate
from deepmnn.conversion.forward import Progress
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.report.facts import Search
from deepmnn.conversion.report.observed import Observed
from deepmnn.quant.divergence import Divergence
from deepmnn.quant.rounder import Rounder


@dataclass(frozen=True)
class Rounded:
    """What a calibration made of a plan.

    Attributes:
        plan: whose source has the calibrated codes.
        calibration: what they were rounded by.
        observed: what was seen meanwhile, where that was wanted.
        divergence: on held-out text, where there is any.
        search: what a budget weighed.
    """

    plan: Plan
    calibration: Calibration
    observed: Observed | None
    divergence: Divergence | None = None
    search: Search | None = None


def rounded(
    plan: Plan,
    samples: Sequence[I32],
    directory: Path,
    progress: Progress | None = None,
    rounder: Rounder | None = None,
    observe: bool = False,
) -> Rounded:
    """Rounds a plan's weights. observe: looks at activations; the rest is as of `calibrate`."""
    observed = Observed(directory, sum(map(len, samples))) if observe else None
    source, calibration = calibrate(plan, samples, directory, progress, rounder, observed)
    return Rounded(replace(plan, source=source), calibration, observed)
