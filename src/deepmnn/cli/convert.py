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
from deepmnn.cli.planned import (
    print_calibration,
    print_divergence,
    print_facts,
    print_kinds,
    print_leftovers,
    print_plan,
    print_search,
)
from deepmnn.cli.progress import work_progress
from deepmnn.errors import RequestError
from deepmnn.source.sizes import nbytes


def convert(
    source: Annotated[
        str,
        Argument(
            help="Checkpoint directory, GGUF or PyTorch file, tiny-r1, or OWNER/NAME on the hub."
        ),
    ],
    target: Annotated[Path, Argument(metavar="OUT", help="Directory to write.")],
    quant: Annotated[
        str | None,
        Option(help="fp32, bf16, w8, w6, w5, w4 or w3; default: w8."),
    ] = None,
    recipe: Annotated[
        Path | None, Option(help="A .yaml file: of your own, or what a conversion has written.")
    ] = None,
    target_kl: Annotated[
        float | None, Option(help="The fewest bytes with so much divergence at most, 0.02 say.")
    ] = None,
    target_bpw: Annotated[
        float | None, Option(help="The least divergence in so many bits for each weight.")
    ] = None,
    max_bytes: Annotated[
        str | None, Option(help="The least divergence in so many bytes: 3GiB, 700MB.")
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
    seed: Annotated[int, Option(min=0, help="Of the random weights, and of the samples.")] = 0,
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
    from deepmnn.conversion.convert import chosen_budget, plan_conversion
    from deepmnn.conversion.held_out import SHARE
    from deepmnn.conversion.report.recorder import HTML, Recorder
    from deepmnn.conversion.report.stored import stored
    from deepmnn.quant.recipe import DEFAULT
    from deepmnn.quant.recipe_file import read_recipe

    began = time.monotonic()
    named = _one_of(quant, recipe)
    most = None if max_bytes is None else nbytes(max_bytes, "--max-bytes")
    budget = chosen_budget(named, target_kl, target_bpw, most)
    if no_calibration and calibration is not None:
        raise RequestError("--no-calibration and --calibration", "one of them")
    if dry_run and budget is not None:
        raise RequestError(
            "--dry-run and a budget",
            "a recipe: what a budget chooses is found by running the model",
        )
    with options.preparing() as progress:  # a checkpoint of the hub is downloaded
        plan = plan_conversion(
            source,
            read_recipe(named or DEFAULT),
            optimize_level,
            config=config,
            random_weights=random_weights,
            seed=seed,
            progress=progress,
        )
    if dry_run:
        print_plan(plan)
        return
    wanted = False if no_calibration else calibration
    chosen = choose(plan, wanted, samples, budget, seed)
    report = None if no_report else Recorder(plan.source)
    with work_progress("converting") as progress:
        done = carry_out(plan, target, chosen, budget, overwrite, progress, report)
    out.say(str(done.path), "bold green")
    print_facts(done.plan)
    weights, origin = done.plan.weights, done.plan.source
    kinds = stored(weights, origin) if report is None else report.kinds(done.plan)
    if any(kind.is_kept for kind in kinds):
        print_kinds(kinds)
    if done.calibration is not None:
        print_calibration(done.calibration)
    elif chosen is not None:
        out.say("  no calibration: there is no matrix that it would round")
    if done.held_out is not None:
        print_divergence(done.held_out)
    elif done.calibration is not None:
        out.say(f"  judged by nothing: fewer than {SHARE} samples hold none out", "yellow")
    if done.search is not None:
        print_search(done.search, done.plan.parameters)
    out.print(f"  took   {time.monotonic() - began:.1f} s, peak memory {file_size(_peak_rss())}")
    print_leftovers(plan)
    if report is not None:
        out.say(f"  report {done.path / HTML}")


def _one_of(quant: str | None, recipe: Path | None) -> str | None:
    """A recipe's name or file. Raises RequestError."""
    from deepmnn.quant.recipe_file import SUFFIXES

    if recipe is None:
        return quant
    if quant is not None:
        raise RequestError("--quant and --recipe", "one of them")
    if recipe.suffix not in SUFFIXES:
        raise RequestError(f"--recipe {recipe}", f"a file that ends with {' or '.join(SUFFIXES)}")
    return str(recipe)


def _peak_rss() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
