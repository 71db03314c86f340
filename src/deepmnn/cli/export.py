"""deepmnn export: a converted model for MNN, on this machine or on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.console import count, err, file_size, out
from deepmnn.cli.progress import byte_progress


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
    overwrite: Annotated[bool, Option(help="Replace an unchanged earlier export in OUT.")] = False,
) -> None:
    """Export a converted model for MNN and phones."""
    from deepmnn.conversion.kept import converted
    from deepmnn.exporters.targets import TARGETS

    if kind not in TARGETS:
        raise typer.BadParameter(f"--target is {kind!r}, expected {' or '.join(TARGETS)}")
    with options.preparing() as progress:
        held = converted(name, progress=progress)
    with held, byte_progress("exporting") as progress:
        report = TARGETS[kind](
            held.path, target, mla_form=mla, overwrite=overwrite, progress=progress
        )
    out.say(str(report.path), "bold green")
    form = f", latent attention {report.mla_form}" if report.mla_form else ""
    out.print(f"  size   {file_size(report.nbytes)}, {count(report.ops)} MNN ops{form}")
    out.print(f"  took   {report.seconds:.1f} s")
    if report.note:
        err.say(f"  note   {report.note}", "yellow")
