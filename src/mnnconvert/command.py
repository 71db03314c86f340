"""A checkpoint to an MNN model: converted or rounded to a temporary artifact, then exported."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from deepmnn.artifact.directory import storage_errors
from deepmnn.artifact.workspace import Workspace
from deepmnn.cli.console import count, err, out
from deepmnn.cli.planned import print_calibration
from deepmnn.cli.progress import byte_progress, work_progress
from deepmnn.conversion.calibrate import Calibration
from deepmnn.conversion.calibration_set import CalibrationSet
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.write import write
from deepmnn.errors import DeepmnnError, StorageError
from deepmnn.exporters.mnn.export import ExportReport, check_place, export
from deepmnn.exporters.mnn.rounded import rounded
from deepmnn.measure.judge import Judgement
from deepmnn.quant.observers import MAX_DIVERGENCE, beyond
from mnnconvert.options import Options, parse
from mnnconvert.verified import Ranges, judged, ranges_of

_SHOWN = 5
"""Activations out of bounds that are named."""


@dataclass(frozen=True)
class Done:
    """What was done.

    Attributes:
        plan: of the artifact that was exported.
        exported: the export's report.
        calibration: what codes of 4 bits were chosen by, if anything.
        ranges, judgement: what a full quantisation was checked for.
    """

    plan: Plan
    exported: ExportReport
    calibration: Calibration | None = None
    ranges: Ranges | None = None
    judgement: Judgement | None = None


def main(arguments: Sequence[str], prog: str = "mnnconvert") -> int:
    """Runs the command line; returns the exit code, 0 or 1. Errors are one line on stderr."""
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding lacks is shown, not raised
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = parse(arguments, prog)
        done = run(options)
    except (DeepmnnError, OSError) as error:
        err.say(f"error: {_words(error)}", "bold red")
        return 1
    _print(options, done)
    return 0


def _words(error: Exception) -> str:
    return error.shell if isinstance(error, DeepmnnError) else str(error)


def _print(options: Options, done: Done) -> None:
    plan, floats = done.plan, "fp16" if options.fp16 else "fp32"
    out.say(
        f"{options.mnn_model}: {plan.model_type}, {count(plan.parameters)} parameters as "
        f"{f'{options.bits} bits' if options.bits else floats}"
    )
    if done.calibration is not None:
        print_calibration(done.calibration)
    if done.ranges is not None:
        _print_ranges(done.ranges)
    if done.judgement is not None:
        _print_judgement(done.judgement)
    out.say(f"next: MNN.llm.create({str(options.mnn_model.with_suffix('.config.json'))!r})")
    if plan.unused:
        err.say(
            f"note: {len(plan.unused)} tensors of the checkpoint are not read, "
            f"{plan.unused[0]!r} for one"
        )
    if done.exported.note:
        err.say(f"note: {done.exported.note}")


def _print_ranges(ranges: Ranges) -> None:
    worst = max((found.divergence for found in ranges.found.values()), default=0.0)
    out.say(
        f"  ranges of {len(ranges.found)} activations by {ranges.samples} samples, "
        f"{count(ranges.tokens)} tokens: KL of each at most {worst:.4f}"
    )
    over = beyond(ranges.found)
    if over:
        out.say(f"  {len(over)} of them are not below {MAX_DIVERGENCE}", "yellow")
    for name, found in list(over.items())[:_SHOWN]:
        out.say(f"    {name}: KL {found.divergence:.4f}, clipped at {found.threshold:.4g}")
    out.say("  MNN takes the range of each token as it runs: it clips no activation")


def _print_judgement(judgement: Judgement) -> None:
    divergence, change = judgement.divergence, judgement.loss_change
    assert divergence is not None
    out.say(
        f"  on {count(judgement.tokens)} held-out tokens: loss {judgement.model.loss:.4f} nats, "
        f"{change:+.4f}; KL {divergence.mean:.4f} from the checkpoint, "
        f"same first choice {divergence.same_first_choice:.1%}"
    )


def run(options: Options) -> Done:
    """Converts and exports; a failure leaves nothing behind. Raises as `rounded` and `export`."""
    target = options.mnn_model
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is no directory", "a directory that exists")
    # What the export would refuse after hours of converting, it refuses now.
    sources = [path for path in (options.model_file, options.config) if path is not None]
    check_place(target.parent, options.overwrite, sources, target.stem)
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch(target))
        if not options.bits:
            plan = plan_conversion(
                options.model_file, "fp32", options.optimize_level, config=options.config
            )
            with byte_progress("converting") as progress:
                path = write(plan, scratch / "artifact", progress=progress)
            return Done(plan, _export(options, path))
        with work_progress("rounding") as progress:
            made = rounded(
                options.model_file,
                target,
                options.bits,
                options.block_size,
                optimize_level=options.optimize_level,
                config=options.config,
                calibration=options.calibration if options.bits == 4 else False,
                samples=options.samples,
                progress=progress,
            )
            ready = stack.enter_context(made)
        if not options.full:
            return Done(ready.plan, _export(options, ready.path), ready.calibration)
        with work_progress("observing") as progress:
            ranges = ranges_of(ready.plan, _samples(options), scratch, progress)
        exported = _export(options, ready.path)
        with work_progress("verifying") as progress:
            source = plan_conversion(options.model_file, "fp32", config=options.config)
            reference = write(source, scratch / "reference", progress=progress)
            judgement = judged(reference, exported.path, progress)
        return Done(ready.plan, exported, ready.calibration, ranges, judgement)


def _samples(options: Options) -> CalibrationSet:
    """Of a full quantisation."""
    given = options.calibration
    return CalibrationSet(given if isinstance(given, Path) else None, options.samples)


def _export(options: Options, path: Path) -> ExportReport:
    with byte_progress("exporting") as progress:
        return export(
            path,
            options.mnn_model.parent,
            stem=options.mnn_model.stem,
            float_dtype="fp16" if options.fp16 else None,
            bits=options.bits or None,
            block_size=options.block_size,
            biz_code=options.biz_code,
            overwrite=options.overwrite,
            progress=progress,
        )


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A directory beside the target, where there must be room anyway. What a killed process leaves,
    the next one to that target removes.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(target):
            workspace = stack.enter_context(Workspace(target))
        yield workspace.new
