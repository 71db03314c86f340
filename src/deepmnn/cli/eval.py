"""deepmnn eval: exact match on problems with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from typer import Option

from deepmnn.cli import options
from deepmnn.cli.console import err, out, table


def evaluate(
    path: options.OptionalModelPath = None,
    data: Annotated[
        Path | None, Option(help="JSON Lines of question, answer; default: tiny-r1's held-out set.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="Ask only the first N.")] = None,
    max_tokens: Annotated[int, Option(min=1, help="Longest answer.")] = 1024,
    backend: options.Backend = None,
    threads: options.Threads = None,
    numa: options.Numa = "off",
    kv_dtype: options.KvDtype = "f32",
    memory: options.Memory = None,
    precision: options.Precision = None,
    cache_tokens: options.CacheTokens = None,
) -> None:
    """Score a model on problems with known answers."""
    from deepmnn.conversion.bundled import HELD_OUT
    from deepmnn.measure.evaluate import evaluate as run
    from deepmnn.measure.evaluate import read_problems

    problems = read_problems(data or HELD_OUT)[:limit]
    location = path or options.bundled()
    model = options.load(
        location, backend, threads, kv_dtype, cache_tokens, memory, precision, numa
    )
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=len(problems))
        report = run(model, problems, max_tokens, lambda _: progress.advance(task))
    if len(report.by_kind) > 1:
        kinds = table("", "kind", "right", "of", "exact match")
        for kind, (right, asked) in report.by_kind.items():
            kinds.add_row(kind or "-", str(right), str(asked), f"{right / asked:.1%}")
        out.print(kinds)
    speed = report.completion_tokens / report.seconds if report.seconds else 0.0
    out.print(
        f"exact match [bold]{report.score:.1%}[/] ({report.correct} of {len(report.answers)}), "
        f"{report.completion_tokens} tokens in {report.seconds:.1f} s ({speed:.0f} tok/s)",
        soft_wrap=True,
    )
