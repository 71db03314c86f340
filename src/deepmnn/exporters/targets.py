"""What a model can be exported to, and an export from any name of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from deepmnn.conversion.bundled import NAME, bundled_checkpoint
from deepmnn.conversion.calibrate import Calibration
from deepmnn.conversion.kept import converted, is_checkpoint, original
from deepmnn.conversion.write import Progress
from deepmnn.errors import RequestError, Words, argument, shown
from deepmnn.exporters.android.export import check_android, export_android
from deepmnn.exporters.exported import Exported
from deepmnn.exporters.gguf.export import check_gguf, export_gguf
from deepmnn.exporters.hf.export import check_hf, export_hf
from deepmnn.exporters.mnn.export import ExportReport, check_place, export
from deepmnn.exporters.mnn.rounded import rounded
from deepmnn.text.samples import COUNT

Report = Exported | ExportReport
"""What an export tells of what it wrote."""


class ExportTarget(NamedTuple):
    """check: raises what an export to a path would, without one. export: does it. options: what it
    takes besides. restores: it reads a source, not a converted model.
    """

    check: Callable[..., None]
    export: Callable[..., Report]
    options: frozenset[str]
    restores: bool = False


_FOR_MNN = frozenset({"mla_form", "bits", "block_size", "calibration", "samples"})

TARGETS = {
    "mnn": ExportTarget(check_place, export, _FOR_MNN),
    "android": ExportTarget(check_android, export_android, _FOR_MNN),
    "hf": ExportTarget(check_hf, export_hf, frozenset({"type"}), restores=True),
    "gguf": ExportTarget(check_gguf, export_gguf, frozenset({"type"}), restores=True),
}
"""What `target` names."""

Stage = Callable[[], AbstractContextManager[Progress | None]]
"""Shows how far a part of an export is."""


class Stages(NamedTuple):
    """The parts of an export: what it takes to have the model, rounding it, and writing."""

    preparing: Stage
    rounding: Stage
    exporting: Stage


def chosen_target(target: str, options: Mapping[str, Any]) -> ExportTarget:
    """The target of that name. options: those that are given, by their names in Python.

    Raises RequestError for another name, and for options that it does not take.
    """
    if target not in TARGETS:
        raise RequestError(argument("target", f" is {shown(target)}"), " or ".join(TARGETS))
    found = TARGETS[target]
    for name in sorted(options.keys() - found.options):
        homes = " or ".join(home for home, each in TARGETS.items() if name in each.options)
        flag = {"mla_form": "mla"}.get(name, name).replace("_", "-")
        flag = "no-calibration" if options[name] is False else flag
        raise RequestError(
            Words(
                f"{name} is for the target {homes}, not {target}",
                f"--{flag} is for --target {homes}, not {target}",
            )
        )
    if "calibration" in options and "bits" not in options:
        raise RequestError(
            Words("calibration is given without bits", "a calibration is given without --bits"),
            Words("bits=4 or bits=8", "--bits 4 or 8"),
        )
    return found


def export_model(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    target: str,
    options: Mapping[str, Any],
    overwrite: bool,
    stages: Stages,
) -> tuple[Report, Calibration | None]:
    """Exports a model by any name; and what its weights were rounded by.

    The arguments are those of `deepmnn.export`; options: those that are given. It raises the same.
    """
    kind = chosen_target(target, options)
    if not kind.restores:
        return _lowered(model, out, kind, options, overwrite, stages)
    kind.check(out, overwrite, [])
    with ExitStack() as stack:
        with stages.preparing() as progress:
            source = stack.enter_context(original(model, progress))
        with stages.exporting() as progress:
            return kind.export(source, out, overwrite=overwrite, progress=progress, **options), None


def _lowered(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    kind: ExportTarget,
    options: Mapping[str, Any],
    overwrite: bool,
    stages: Stages,
) -> tuple[Report, Calibration | None]:
    """An export of a converted model, or of a checkpoint that is rounded for it."""
    wanted = {name: options[name] for name in ("bits", "block_size") if name in options}
    calibrated = None
    with ExitStack() as stack:
        if "bits" not in wanted:
            with stages.preparing() as progress:
                path = stack.enter_context(converted(model, progress=progress)).path
        else:
            checkpoint = _checkpoint(model)
            kind.check(out, overwrite, [Path(checkpoint)])
            with stages.rounding() as progress:
                made = rounded(
                    checkpoint,
                    out,
                    **wanted,
                    calibration=options.get("calibration"),
                    samples=options.get("samples", COUNT),
                    progress=progress,
                )
                ready = stack.enter_context(made)
            path, calibrated = ready.path, ready.calibration
        with stages.exporting() as progress:
            form = options.get("mla_form", "auto")
            report = kind.export(
                path, out, mla_form=form, overwrite=overwrite, progress=progress, **wanted
            )
    return report, calibrated


def _checkpoint(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """What to round. Raises RequestError for a model that is converted already."""
    if not os.path.lexists(model):
        return bundled_checkpoint() if model == NAME else model
    if not is_checkpoint(Path(model)):
        raise RequestError(
            Words(
                f"bits are given for {model}, which is converted already",
                f"--bits for {model}, which is converted already",
            ),
            "a checkpoint",
            Words(
                "Name the checkpoint that it was made of, or leave bits out.",
                "Name the checkpoint that it was made of, or leave --bits out.",
            ),
        )
    return model
