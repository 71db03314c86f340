"""deepmnn export: a model for MNN, on this machine or on a phone."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.console import count, err, file_size, out
from deepmnn.cli.planned import print_calibration
from deepmnn.cli.progress import byte_progress, work_progress
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.exporters.mnn.export import ExportReport


def export(
    name: Annotated[
        str,
        Argument(
            metavar="MODEL", help="A converted model, a checkpoint, or OWNER/NAME on the hub."
        ),
    ],
    target: Annotated[Path, Argument(metavar="OUT", help="Folder to write.")],
    kind: Annotated[
        str,
        Option(
            "--target", help="mnn: a model folder. android: that, and an Android Studio project."
        ),
    ] = "mnn",
    mla: Annotated[
        str,
        Option(
            help="Latent attention caches keys and values (expanded), latents (absorbed), or auto."
        ),
    ] = "auto",
    bits: Annotated[
        int | None,
        Option(help="4 or 8: round a checkpoint for MNN, from its own numbers; else from w8."),
    ] = None,
    block_size: Annotated[
        int | None, Option(help="Columns that share a scale; default: 64 of 4 bits, 128 of 8.")
    ] = None,
    calibration: Annotated[
        Path | None, Option(help="Texts to choose codes of 4 bits by; default: deepmnn's.")
    ] = None,
    samples: Annotated[int, Option(min=1, help="Of the calibration, at most.")] = 500,
    no_calibration: Annotated[
        bool, Option("--no-calibration", help="Round every weight to the nearest number.")
    ] = False,
    overwrite: Annotated[bool, Option(help="Replace an unchanged earlier export in OUT.")] = False,
) -> None:
    """Export a model for MNN and phones."""
    from deepmnn.conversion.kept import converted
    from deepmnn.exporters.mnn.rounded import rounded
    from deepmnn.exporters.targets import TARGETS

    if kind not in TARGETS:
        raise typer.BadParameter(f"--target is {kind!r}, expected {' or '.join(TARGETS)}")
    if bits is None and (calibration or no_calibration):
        raise typer.BadParameter("a calibration is for --bits 4")
    check, run = TARGETS[kind]
    calibrated = None
    with ExitStack() as stack:
        path: str | os.PathLike[str]
        if bits is None:
            with options.preparing() as progress:
                held = stack.enter_context(converted(name, progress=progress))
            path = held.path
        else:
            path = _checkpoint(name)
            check(target, overwrite, [Path(path)])
            with work_progress("rounding") as progress:
                made = rounded(
                    path,
                    target,
                    bits,
                    block_size,
                    calibration=False if no_calibration else calibration,
                    samples=samples,
                    progress=progress,
                )
                ready = stack.enter_context(made)
            path, calibrated = ready.path, ready.calibration
        with byte_progress("exporting") as progress:
            report = run(
                path,
                target,
                mla_form=mla,
                bits=bits,
                block_size=block_size,
                overwrite=overwrite,
                progress=progress,
            )
    _print(report)
    if calibrated is not None:
        print_calibration(calibrated)
    if report.note:
        err.say(f"  note   {report.note}", "yellow")


def _checkpoint(name: str) -> str | os.PathLike[str]:
    """What to round. Raises RequestError for a model that is converted already."""
    from deepmnn.conversion.bundled import NAME, bundled_checkpoint
    from deepmnn.conversion.kept import is_checkpoint

    if not os.path.lexists(name):
        return bundled_checkpoint() if name == NAME else name
    if not is_checkpoint(Path(name)):
        raise RequestError(
            f"--bits for {name}, which is converted already",
            "a checkpoint",
            "Name the checkpoint that it was made of, or leave --bits out.",
        )
    return name


def _print(report: ExportReport) -> None:
    out.say(str(report.path), "bold green")
    form = f", latent attention {report.mla_form}" if report.mla_form else ""
    out.print(f"  size   {file_size(report.nbytes)}, {count(report.ops)} MNN ops{form}")
    out.print(f"  took   {report.seconds:.1f} s")
