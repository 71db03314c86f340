"""deepmnn convert: a checkpoint becomes a model that runs."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Annotated

from rich.text import Text
from typer import Argument, Option

from deepmnn.cli.console import ConvertProgress, byte_progress, count, file_size, out


def convert(
    source: Annotated[Path, Argument(help="Checkpoint directory, or a PyTorch file.")],
    target: Annotated[Path, Argument(metavar="OUT", help="Directory to write.")],
    quant: Annotated[str, Option(help="fp32, bf16, w8 or w4.")] = "w4",
    optimize_level: Annotated[int, Option(min=0, max=3, help="Graph optimisation.")] = 3,
    config: Annotated[
        Path | None, Option(help="config.json to use; default: the one beside the weights.")
    ] = None,
    group_size: Annotated[
        int | None, Option(help="Columns per scale in w4: 32, 64 or 128.")
    ] = None,
    random_weights: Annotated[bool, Option(help="Make the weights up; needs no tensors.")] = False,
    seed: Annotated[int, Option(min=0, help="Of the random weights.")] = 0,
    overwrite: Annotated[bool, Option(help="Replace an earlier conversion in OUT.")] = False,
) -> None:
    """Convert and quantise a checkpoint."""
    import deepmnn

    with byte_progress("converting") as progress:
        report = deepmnn.convert(
            source,
            target,
            quant,
            optimize_level,
            config=config,
            group_size=group_size,
            random_weights=random_weights,
            seed=seed,
            overwrite=overwrite,
            progress=ConvertProgress(progress),
        )
    out.print(Text(str(report.path), style="bold green"), soft_wrap=True)
    size = file_size(report.nbytes)
    if report.source_nbytes:
        size += f", {report.source_nbytes / report.nbytes:.2f} x smaller than the checkpoint"
    fewer = 1 - report.nodes / report.nodes_level_0
    out.print(f"  {report.model_type}, {count(report.parameters)} parameters as {report.quant}")
    out.print(f"  size   {size}")
    out.print(f"  nodes  {report.nodes_level_0} -> {report.nodes} ({fewer:.0%} fewer)")
    out.print(f"  took   {report.seconds:.1f} s, peak memory {file_size(_peak_rss())}")
    if report.dropped:
        out.print(
            f"  [yellow]{len(report.dropped)} weights that config.json promises are not in the "
            f"checkpoint (multi-token prediction): left out[/]"
        )


def _peak_rss() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
