"""deepmnn check: every special op of a model against its definition; or a calibration set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import BadParameter, Exit, Option

from deepmnn.cli import options
from deepmnn.cli.console import out, print_json, table
from deepmnn.cli.progress import status, work_progress

if TYPE_CHECKING:
    from deepmnn.inspect.check.covered import Coverage
    from deepmnn.inspect.check.line import Line

_CALIBRATION = "Calibration"
_STYLES = {"ok": "green", "wrong": "bold red", "skipped": "dim"}
_SHOWN = 5
"""Kinds of texts, and tensors, that are named."""


def check(
    name: options.ModelPath,
    calibration: Annotated[
        str | None,
        Option(
            metavar="DATA",
            help="Texts or token ids that weights are rounded by, or built-in: do they cover "
            "--against?",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        Option(
            metavar="PROMPTS",
            help="Texts or token ids of what the model will be asked.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = None,
    samples: Annotated[
        int, Option(min=8, help="Texts of each set, at most.", rich_help_panel=_CALIBRATION)
    ] = 128,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check each special op of a model against its definition; or its calibration set.

    Exit code 1 when something is wrong.
    """
    if (calibration is None) != (against is None):
        raise BadParameter("--calibration and --against belong together")
    if calibration is not None and against is not None:
        lines = _check_calibration(name, calibration, against, samples, as_json)
    else:
        lines = _check_ops(name, as_json)
    if any(line.verdict == "wrong" for line in lines):
        raise Exit(1)


def _check_ops(name: str, as_json: bool) -> list[Line]:
    from deepmnn.inspect.check.checks import check as run

    lines = []
    with options.preparing() as progress, status("checking") as say:
        for line in run(name, progress):
            lines.append(line)
            say(line.name)
    if as_json:
        print_json({"model": name, "checks": [asdict(line) for line in lines]}, indent=2)
    else:
        _print_lines(lines)
    return lines


def _check_calibration(
    name: str, calibration: str, against: Path, samples: int, as_json: bool
) -> list[Line]:
    from deepmnn.inspect.check.calibration import check_calibration
    from deepmnn.inspect.check.texts import BUILT_IN

    file = None if calibration == BUILT_IN else Path(calibration)
    with options.preparing() as preparing, work_progress("running both sets") as progress:
        found = check_calibration(name, file, against, samples, progress, preparing)
    lines = found.lines()
    if as_json:
        told = {"model": name, "checks": [asdict(line) for line in lines], **asdict(found)}
        print_json(told, indent=2)
    else:
        _print_coverage(found, calibration, str(against))
        _print_lines(lines)
    return lines


def _print_lines(lines: Iterable[Line]) -> None:
    """A row for each, and what to do about those that are wrong."""
    lines = list(lines)
    made = table("", "check", "", "found", "expected")
    for column in made.columns:
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    made.columns[1].no_wrap = True
    for line in lines:
        verdict = Text(line.verdict, _STYLES[line.verdict])
        made.add_row(line.name, verdict, line.found, line.expected)
    out.print(made)
    for line in lines:
        if line.verdict == "wrong":
            out.say(f"{line.name}: {line.found}; expected {line.expected}. {line.advice}", "red")
    counts = {kind: sum(line.verdict == kind for line in lines) for kind in _STYLES}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    out.say(said, "bold red" if counts["wrong"] else "bold green")


def _print_coverage(found: Coverage, calibration: str, against: str) -> None:
    """The kinds of texts and the tensors that the calibration set covers least."""
    for file, (texts, tokens) in ((calibration, found.calibration), (against, found.against)):
        out.say(f"{file}: {texts} texts, {tokens:,} tokens")
    kinds = table(
        "least covered texts", "looks like", "texts", "uncovered", "calibrated", "distance"
    )
    kinds.add_column("the furthest begins", no_wrap=False)
    for kind in found.kinds[:_SHOWN]:
        figures = (kind.texts, kind.uncovered, kind.calibration)
        kinds.add_row(kind.name, *map(str, figures), f"{kind.distance:.2f}", kind.example[:48])
    out.print(kinds)
    ranked = sorted(found.tensors, key=lambda t: -t.divergence / max(t.chance, 1e-9))
    tensors = table("tensors that differ most", "tensor", "KL, nats", "by chance", "beyond range")
    for tensor in ranked[:_SHOWN]:
        shares = (tensor.divergence, tensor.chance, tensor.outside)
        tensors.add_row(tensor.name, *(f"{share:.2g}" for share in shares))
    out.print(tensors)
