"""deepmnn export: a model for MNN, on this machine or on a phone, or for other programs."""

from __future__ import annotations

import os
from contextlib import ExitStack
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
    from deepmnn.exporters.targets import ExportTarget, Report


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
            help="hf: bf16 (default), fp16, fp32. gguf: Q8_0 (default), Q5_1, Q5_0, Q4_1, Q4_0, "
            "BF16, F16, F32."
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
    from deepmnn.exporters.targets import TARGETS

    if kind not in TARGETS:
        raise typer.BadParameter(f"--target is {kind!r}, expected {' or '.join(TARGETS)}")
    asked: dict[str, Any] = {
        "type": type,
        "mla": mla,
        "bits": bits,
        "block_size": block_size,
        "calibration": calibration,
        "samples": samples,
        "no_calibration": no_calibration or None,
    }
    given = {option: value for option, value in asked.items() if value is not None}
    for option in sorted(given.keys() - TARGETS[kind].options):
        homes = " or ".join(home for home, found in TARGETS.items() if option in found.options)
        flag = option.replace("_", "-")
        raise typer.BadParameter(f"--{flag} is for --target {homes}, not {kind}")
    if TARGETS[kind].restores:
        _print(_restored(name, target, TARGETS[kind], given, overwrite))
    else:
        _print(*_lowered(name, target, TARGETS[kind], given, overwrite))


def _restored(
    name: str, target: Path, kind: ExportTarget, given: dict[str, Any], overwrite: bool
) -> Report:
    """An export of the tensors that the model's makers know."""
    from deepmnn.conversion.kept import original

    kind.check(target, overwrite, [])
    with ExitStack() as stack:
        with options.preparing() as progress:
            source = stack.enter_context(original(name, progress))
        with byte_progress("exporting") as progress:
            return kind.export(source, target, overwrite=overwrite, progress=progress, **given)


def _lowered(
    name: str, target: Path, kind: ExportTarget, given: dict[str, Any], overwrite: bool
) -> tuple[Report, Calibration | None]:
    """An export of a converted model, or of a checkpoint that is rounded for it."""
    from deepmnn.conversion.kept import converted
    from deepmnn.exporters.mnn.rounded import rounded
    from deepmnn.text.samples import COUNT

    bits, block_size = given.get("bits"), given.get("block_size")
    if bits is None and given.keys() & {"calibration", "no_calibration"}:
        raise typer.BadParameter("a calibration is for --bits 4 or 8")
    calibrated = None
    with ExitStack() as stack:
        path: str | os.PathLike[str]
        if bits is None:
            with options.preparing() as progress:
                held = stack.enter_context(converted(name, progress=progress))
            path = held.path
        else:
            path = _checkpoint(name)
            kind.check(target, overwrite, [Path(path)])
            with work_progress("rounding") as progress:
                made = rounded(
                    path,
                    target,
                    bits,
                    block_size,
                    calibration=False if "no_calibration" in given else given.get("calibration"),
                    samples=given.get("samples", COUNT),
                    progress=progress,
                )
                ready = stack.enter_context(made)
            path, calibrated = ready.path, ready.calibration
        with byte_progress("exporting") as progress:
            report = kind.export(
                path,
                target,
                mla_form=given.get("mla", "auto"),
                bits=bits,
                block_size=block_size,
                overwrite=overwrite,
                progress=progress,
            )
    return report, calibrated


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


def _print(report: Report, calibrated: Calibration | None = None) -> None:
    out.say(str(report.path), "bold green")
    out.print(f"  size   {file_size(report.nbytes)}, {report.contents}")
    out.print(f"  took   {report.seconds:.1f} s")
    if calibrated is not None:
        print_calibration(calibrated)
    if report.note:
        err.say(f"  note   {report.note}", "yellow")
