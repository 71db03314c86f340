"""deepmnn batch: a file of requests, a file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import err
from deepmnn.cli.progress import count_progress
from deepmnn.cli.serve import importing, model_name


def batch(
    path: options.ModelPath,
    source: Annotated[
        Path,
        Argument(metavar="IN.jsonl", help="Requests in the format of OpenAI's Batch API."),
    ],
    target: Annotated[Path, Argument(metavar="OUT.jsonl", help="The answers, a line for each.")],
    overwrite: Annotated[
        bool, Option("--overwrite", help="Begin anew where answers are there.")
    ] = False,
    *,
    load: LoadOptions,
) -> None:
    """Answer the requests of a file. Stopped or killed, the same command goes on.

    Until all are answered, the answers are in OUT.jsonl.partial.
    """
    with importing():
        from deepmnn.serve.batch.run import run_batch
        from deepmnn.serve.batch.tasks import task_ids

    task_ids(source)  # before the model is loaded
    model = options.open_model(path, load)
    try:
        with count_progress("answering") as report:
            counts = run_batch(
                model,
                model_name(path),
                source,
                target,
                overwrite=overwrite,
                progress=lambda done, total: report(done, total, ""),
            )
    except KeyboardInterrupt:
        err.say(f"stopped; the same command goes on from {target}.partial", "dim")
        raise
    before = f", {counts.before} before" if counts.before else ""
    refused = f", {counts.refused} refused" if counts.refused else ""
    err.say(f"{target}: {counts.answered} answered{refused}{before}", "dim")
