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
from deepmnn.conversion.report.facts import CalibrationFacts
from deepmnn.conversion.report.observed import Observed
from deepmnn.conversion.report.recorder import Recorder
from deepmnn.conversion.write import Progress, write
from deepmnn.errors import RequestError, argument
from deepmnn.formats import named
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
    report: Recorder | None = None,
) -> tuple[Path, Calibration | None]:
    """Writes the artifact of a plan; → its path, and what its weights were rounded by.

    report: made of the plan's source; it is written with the artifact.

    A calibration that is interrupted leaves its state beside `out`; the same conversion, asked for
    again, goes on with it. Raises as `write` and `CalibrationSet.ids`.
    """
    if calibration is None:
        return write(plan, out, overwrite, progress, report), None
    Target(out, FORMAT, overwrite, plan.source.paths).check()  # not after an hour of calibrating
    samples = calibration.ids(plan.source)
    with calibration_state(Path(out), plan, samples) as directory:
        observed = Observed(directory, sum(map(len, samples))) if report is not None else None
        source, calibrated = calibrate(plan, samples, directory, progress, observed)
        if report is not None and observed is not None:
            report.calibrated(CalibrationFacts(**vars(calibrated)), observed)
        path = write(replace(plan, source=source), out, overwrite, progress, report)
    return path, calibrated
