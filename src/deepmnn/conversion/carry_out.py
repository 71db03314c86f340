"""Carries out a plan: the weights calibrated where that is wanted, then written."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from deepmnn.artifact.manifest import FORMAT
from deepmnn.artifact.target import Target
from deepmnn.conversion.calibrate import Calibration, calibrate
from deepmnn.conversion.calibration_set import CalibrationSet, has_tokenizer
from deepmnn.conversion.calibration_state import calibration_state
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.write import Progress, write
from deepmnn.errors import RequestError, argument
from deepmnn.formats import named
from deepmnn.quant.rounder import Panels, Rounder
from deepmnn.source.random import RandomSource

_GOOD_BITS = 8
"""Codes of so many bits are good enough when each is rounded to nearest."""


def choose(
    plan: Plan, wanted: str | os.PathLike[str] | bool | None, samples: int
) -> CalibrationSet | None:
    """The calibration of a conversion, None for rounding to nearest.

    wanted: a file; True: the set that comes with deepmnn; False: none; None: that set where codes
    have few bits and the checkpoint has a tokenizer.

    Raises RequestError for random weights, which nothing has been said about, and for samples below
    1.
    """
    if type(samples) is not int or samples < 1:
        raise RequestError(argument("samples", f" is {samples!r:.40}"), "a positive integer")
    drawn = isinstance(plan.source, RandomSource)
    if wanted is None:
        few = any(
            named(weight.format).is_quantized and named(weight.format).bits < _GOOD_BITS
            for weight in plan.weights
        )
        wanted = few and not drawn and has_tokenizer(plan.source)
    elif wanted is not False and drawn:
        raise RequestError("a calibration of random weights", "a checkpoint with weights")
    if wanted is False:
        return None
    return CalibrationSet(None if wanted is True else Path(wanted), samples)


def carry_out(
    plan: Plan,
    out: str | os.PathLike[str],
    calibration: CalibrationSet | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    rounder: Rounder | None = None,
    state: Path | None = None,
) -> tuple[Path, Calibration | None]:
    """Writes the artifact of a plan; → its path, and what its weights were rounded by.

    A calibration that is interrupted leaves its state beside `out`, or beside `state`; the same
    conversion, asked for again, goes on with it. rounder: that of the calibration; None: the panels
    of our engine. Raises as `write` and `CalibrationSet.ids`.
    """
    if calibration is None:
        return write(plan, out, overwrite, progress), None
    Target(out, FORMAT, overwrite, plan.source.paths).check()  # not after an hour of calibrating
    samples = calibration.ids(plan.source)
    rounder = rounder or Panels()
    formats = rounder.formats(plan.weights)
    with calibration_state(state or Path(out), plan, samples, formats) as directory:
        source, report = calibrate(plan, samples, directory, progress, rounder=rounder)
        path = write(replace(plan, source=source), out, overwrite, progress)
    return path, report
