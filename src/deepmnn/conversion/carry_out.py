"""Carries out a plan: the weights calibrated where that is wanted, then written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from deepmnn.artifact.manifest import FORMAT
from deepmnn.artifact.target import Target
from deepmnn.conversion.budget import Budget, check_bytes, fit
from deepmnn.conversion.calibrate import Calibration
from deepmnn.conversion.calibration_set import CalibrationSet, has_tokenizer
from deepmnn.conversion.calibration_state import calibration_state
from deepmnn.conversion.held_out import SHARE, HeldOut, split
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.report.facts import CalibrationFacts, Judged, Search
from deepmnn.conversion.report.recorder import Recorder
from deepmnn.conversion.rounded import Rounded, rounded
from deepmnn.conversion.write import Progress, write
from deepmnn.errors import RequestError, Words, argument
from deepmnn.formats import named
from deepmnn.quant.divergence import Divergence
from deepmnn.quant.rounder import Panels, Rounder
from deepmnn.source.random import RandomSource
from deepmnn.text.samples import COUNT

_LEAST_HELD_OUT = 100
_GOOD_BITS = 8
"""Codes of so many bits are good enough when each is rounded to nearest."""


def choose(
    plan: Plan,
    wanted: str | os.PathLike[str] | bool | None,
    samples: int,
    budget: Budget | None = None,
    seed: int = 0,
) -> CalibrationSet | None:
    """The calibration of a conversion, None for rounding to nearest.

    wanted: a file; True: the set that comes with deepmnn; False: none; None: that set where there
    is a budget, or codes have few bits and the checkpoint has a tokenizer. seed: of the samples.

    Raises RequestError for random weights, which nothing has been said about, and for samples below
    1.
    """
    if type(samples) is not int or samples < 1:
        raise RequestError(argument("samples", f" is {samples!r:.40}"), "a positive integer")
    drawn = isinstance(plan.source, RandomSource)
    if wanted is None and budget is not None:
        wanted = True
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
    return CalibrationSet(None if wanted is True else Path(wanted), samples, seed)


def is_calibrated(plan: Plan) -> bool:
    """Whether a conversion that nothing is said about is calibrated."""
    return choose(plan, None, COUNT) is not None and bool(Panels().formats(plan.weights))


@dataclass(frozen=True)
class Converted:
    """What a plan became.

    Attributes:
        path: the artifact.
        plan: that was written; a budget changes its recipe.
        calibration: what the weights were rounded by; None: each to the nearest number, or none
            was rounded.
        held_out: how far its predictions are from the checkpoint's, on samples that nothing was
            rounded by; None without calibration, or of too few samples.
        search: what a budget weighed.
    """

    path: Path
    plan: Plan
    calibration: Calibration | None = None
    held_out: Divergence | None = None
    search: Search | None = None


def carry_out(
    plan: Plan,
    out: str | os.PathLike[str],
    calibration: CalibrationSet | None = None,
    budget: Budget | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Recorder | None = None,
    rounder: Rounder | None = None,
    state: Path | None = None,
) -> Converted:
    """Writes the artifact of a plan, without the calibration where it would round nothing.

    A calibration that is interrupted leaves its state beside `out`, or beside `state`; the same
    conversion, asked for again, goes on with it. report: made of the plan's source; it is written
    with the artifact. rounder: that of the calibration; None: the panels of our engine.

    Raises RequestError for a budget without a calibration, or of too few samples, and as `write`,
    `CalibrationSet.ids` and `fit`.
    """
    if calibration is None:
        if budget is not None:
            raise RequestError(
                "a budget without a calibration",
                "samples, which formats are chosen by",
                Words("Leave calibration away.", "Leave --no-calibration away."),
            )
        return Converted(write(plan, out, overwrite, progress, report), plan)
    rounder = rounder or Panels()
    if budget is None and not rounder.formats(plan.weights):  # all is kept, or stored as floats
        return Converted(write(plan, out, overwrite, progress, report), plan)
    Target(out, FORMAT, overwrite, plan.source.paths).check()  # not after an hour of calibrating
    if budget is not None:
        check_bytes(plan, budget)
    samples, held_out = split(calibration.ids(plan.source))
    if budget is not None and not held_out:
        raise RequestError(
            f"a budget with {len(samples)} samples", f"at least {SHARE}, of which one judges"
        )
    if budget is not None and budget.kl is not None:
        _check_tokens(sum(map(len, held_out)))
    depends = (rounder.formats(plan.weights), budget is not None)
    text = [*samples, *held_out]
    with calibration_state(state or Path(out), plan, text, *depends) as directory:
        if budget is not None:
            made = fit(plan, budget, samples, held_out, directory, progress, report is not None)
        else:
            made = rounded(plan, samples, directory, progress, rounder, report is not None)
            if held_out:
                judge = HeldOut(plan, held_out, directory, progress)
                made = replace(made, divergence=judge.divergence(made.plan))
        if report is not None:
            _record(made, report)
        path = write(made.plan, out, overwrite, progress, report)
    return Converted(path, made.plan, made.calibration, made.divergence, made.search)


def _check_tokens(count: int) -> None:
    """Refuses held-out samples that are too short to say how far predictions are."""
    if count < _LEAST_HELD_OUT:
        raise RequestError(
            f"{count} held-out tokens to judge a divergence by",
            f"at least {_LEAST_HELD_OUT}",
            "Give more samples, or longer ones.",
        )


def _record(made: Rounded, report: Recorder) -> None:
    """What a report says of weights that were rounded."""
    done, found = made.calibration, made.divergence
    facts = CalibrationFacts(done.samples, done.tokens, done.tensors, done.scarce)
    assert made.observed is not None
    report.calibrated(facts, made.observed)
    if found is not None:
        judged = (found.tokens, found.mean, found.percentile_99, found.same_first_choice)
        report.judged(Judged(*judged))
    if made.search is not None:
        report.searched(made.search)
