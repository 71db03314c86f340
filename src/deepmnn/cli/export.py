"""deepmnn export: a model for MNN, on this machine or on a phone, or for other programs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.console import err, file_size, out
from deepmnn.cli.planned import print_calibration
from deepmnn.cli.progress import byte_progress, work_progress
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.conversion.calibrate import Calibration
    from deepmnn.exporters.targets import Report


def export(
    name: Annotated[
        str,
        Argument(
            metavar="MODEL", help="A converted model, a checkpoint, or OWNER/NAME on the hub."
        ),
    ],
    target: Annotated[Path, Argument(metavar="OUT", help="Folder, or GGUF file, to write.")],
    kind: Annotated[
        str,
        Option(
            "--target",
            help="mnn: a model folder. android: that, and an Android Studio project. "
            "hf: a Hugging Face directory. gguf: one file for llama.cpp.",
        ),
    ] = "mnn",
    type: Annotated[
        str | None,
        Option(
            help="hf: bf16 (default), fp16, fp32, compressed-tensors (keeps codes). gguf: Q8_0, "
            "Q5_1, Q5_0, Q4_1, Q4_0, BF16, F16, F32; default: codes stay where they fit, else Q8_0."
        ),
    ] = None,
    mla: Annotated[
        str | None,
        Option(
            help="Latent attention caches keys and values (expanded), latents (absorbed), or auto."
        ),
    ] = None,
    bits: Annotated[
        int | None,
        Option(help="4 or 8: round a checkpoint for MNN, from its own numbers; else from w8."),
    ] = None,
    block_size: Annotated[
        int | None, Option(help="Columns that share a scale; default: 64 of 4 bits, 128 of 8.")
    ] = None,
    calibration: Annotated[
        Path | None, Option(help="Texts to round the weights by; default: deepmnn's.")
    ] = None,
    samples: Annotated[
        int | None, Option(min=1, help="Of the calibration, at most; default: 500.")
    ] = None,
    no_calibration: Annotated[
        bool, Option("--no-calibration", help="Round every weight to the nearest number.")
    ] = False,
    overwrite: Annotated[bool, Option(help="Replace an unchanged earlier export in OUT.")] = False,
) -> None:
    """Export a model: for MNN and phones, as a Hugging Face directory, or as GGUF."""
    from deepmnn.exporters.targets import Stages, chosen_target, export_model

    asked: dict[str, Any] = {
        "type": type,
        "mla_form": mla,
        "bits": bits,
        "block_size": block_size,
        "calibration": False if no_calibration else calibration,
        "samples": samples,
    }
    given = {option: value for option, value in asked.items() if value is not None}
    try:
        chosen_target(kind, given)
    except RequestError as error:
        raise typer.BadParameter(error.shell) from None
    rounding = partial(work_progress, "rounding")
    stages = Stages(options.preparing, rounding, partial(byte_progress, "exporting"))
    _print(*export_model(name, target, kind, given, overwrite, stages))


def _print(report: Report, calibrated: Calibration | None) -> None:
    out.say(str(report.path), "bold green")
    out.print(f"  size   {file_size(report.nbytes)}, {report.contents}")
    out.print(f"  took   {report.seconds:.1f} s")
    if calibrated is not None:
        print_calibration(calibrated)
    if report.note:
        err.say(f"  note   {report.note}", "yellow")
