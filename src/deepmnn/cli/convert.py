"""deepmnn convert: a checkpoint becomes a model that runs."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.console import file_size, out
from deepmnn.cli.planned import print_calibration, print_facts, print_leftovers, print_plan
from deepmnn.cli.progress import work_progress


def convert(
    source: Annotated[
        str, Argument(help="Checkpoint directory, PyTorch file, or OWNER/NAME on the hub.")
    ],
    target: Annotated[Path, Argument(metavar="OUT", help="Directory to write.")],
    quant: Annotated[
        str | None,
        Option(help="fp32, bf16, w8, w6, w5, w4, w3, or a recipe in a .json file; default: w8."),
    ] = None,
    optimize_level: Annotated[int, Option(min=0, max=3, help="Graph optimisation.")] = 3,
    config: Annotated[
        Path | None, Option(help="config.json to use; default: the one beside the weights.")
    ] = None,
    calibration: Annotated[
        Path | None,
        Option(help="Texts to round the weights by; default below 8 bits: a set of deepmnn's."),
    ] = None,
    samples: Annotated[int, Option(min=1, help="Of the calibration, at most.")] = 500,
    no_calibration: Annotated[
        bool, Option("--no-calibration", help="Round every weight to the nearest number.")
    ] = False,
    random_weights: Annotated[bool, Option(help="Make the weights up; needs no tensors.")] = False,
    seed: Annotated[int, Option(min=0, help="Of the random weights.")] = 0,
    overwrite: Annotated[
        bool, Option(help="Replace an unchanged earlier conversion in OUT.")
    ] = False,
    no_report: Annotated[
        bool, Option("--no-report", help="Write no report.html and report.json.")
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print what would be written, and write nothing.")
    ] = False,
) -> None:
    """Convert and quantise a checkpoint."""
    from deepmnn.conversion.carry_out import carry_out, choose
    from deepmnn.conversion.convert import plan_conversion
    from deepmnn.conversion.report.recorder import HTML, Recorder
    from deepmnn.quant.recipe import DEFAULT, read_recipe

    began = time.monotonic()
    with options.preparing() as progress:  # a checkpoint of the hub is downloaded
        plan = plan_conversion(
            source,
            read_recipe(quant or DEFAULT),
            optimize_level,
            config=config,
            random_weights=random_weights,
            seed=seed,
            progress=progress,
        )
    if dry_run:
        print_plan(plan)
        return
    chosen = choose(plan, False if no_calibration else calibration, samples)
    report = None if no_report else Recorder(plan.source)
    with work_progress("converting") as progress:
        path, calibrated = carry_out(plan, target, chosen, overwrite, progress, report)
    out.say(str(path), "bold green")
    print_facts(plan)
    if calibrated is not None:
        print_calibration(calibrated)
    out.print(f"  took   {time.monotonic() - began:.1f} s, peak memory {file_size(_peak_rss())}")
    print_leftovers(plan)
    if report is not None:
        out.say(f"  report {path / HTML}")


def _peak_rss() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
