"""deepmnn eval: exact match on problems with known answers."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

from rich.text import Text
from typer import Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import out, table, visible
from deepmnn.cli.progress import count_progress


def evaluate(
    path: options.OptionalModelPath = None,
    data: Annotated[
        Path | None, Option(help="JSON Lines of question, answer; default: tiny-r1's held-out set.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Ask only the first N.")] = None,
    max_tokens: Annotated[int, Option(min=1, help="Longest answer in tokens.")] = 1024,
    *,
    load: LoadOptions,
) -> None:
    """Score a model on problems with known answers."""
    from deepmnn.conversion.bundled import HELD_OUT
    from deepmnn.measure.evaluate import evaluate as run
    from deepmnn.measure.evaluate import read_problems

    problems = read_problems(data or HELD_OUT)[:limit]
    model = options.open_model(path or options.bundled(), load)
    with count_progress("asking") as progress:
        done = count(1)
        progress(0, len(problems), "")
        report = run(model, problems, max_tokens, lambda _: progress(next(done), len(problems), ""))
    if len(report.by_kind) > 1:
        kinds = table("", "kind", "right", "of", "exact match")
        for kind, (right, asked) in report.by_kind.items():
            kinds.add_row(
                visible(kind, one_line=True) or "-", str(right), str(asked), f"{right / asked:.1%}"
            )
        out.print(kinds)
    speed = report.completion_tokens / report.seconds if report.seconds else 0.0
    figures = Text.assemble(
        "exact match ",
        (f"{report.score:.1%}", "bold"),
        f" ({report.correct} of {len(report.answers)}), {report.completion_tokens} tokens in "
        f"{report.seconds:.1f} s ({speed:.0f} tok/s)",
    )
    out.print(figures, soft_wrap=True)
