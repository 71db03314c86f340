"""A whole model over samples, a stage at a time (graph/stages.py): memory holds one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deepmnn.artifact.directory import storage_errors
from deepmnn.backends.base import I32
from deepmnn.conversion.plan import choose_formats
from deepmnn.conversion.spool import Spool, Stream
from deepmnn.conversion.stage import Stage, stored_from
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import optimize
from deepmnn.graph.stages import stages
from deepmnn.graph.weights import TensorSource
from deepmnn.quant.recipe import Recipe
from deepmnn.source.source import Source

Progress = Callable[[int, int, str], None]
"""Called with (work done, work in all, what)."""

LEVEL = 2
APART = frozenset({"fuse_add_norm", "select_rows_early"})
"""Passes that carry two values from layer to layer."""
STEP_TOKENS = 2048
STREAM: Stream = "exact"
"""The only one of a spool of ours."""


def staged(naive: Graph, recipe: Recipe, source: Source | None = None) -> list[Graph]:
    """The stages of a model whose weights are stored by a recipe; the last one gives logits.

    source: whose codes are kept, as `plan` keeps them; None: none.
    """
    chosen = partial(choose_formats, recipe=recipe, source=source)
    graph, _ = optimize(naive, LEVEL, None, APART, chosen)
    return stages(graph, ("logits",))


def forward(
    graphs: Sequence[Graph],
    source: TensorSource,
    samples: Sequence[I32],
    directory: Path,
    progress: Progress | None = None,
) -> Spool:
    """Runs samples through all stages but the last; → what that one reads.

    Args:
        graphs: of `staged`.
        source: of the weights.
        samples: token ids, at least one in each.
        directory: for what goes from stage to stage. What was run before is not run again.
        progress: called after every stage.
    """
    spool = new_spool(directory, graphs)
    steps = list(batches(samples))
    for number in range(spool.last(), len(graphs) - 1):
        for _ in run_stage(graphs[number], number, source, steps, spool):
            pass
        if progress is not None:
            progress(number + 1, len(graphs), f"layer {number}")
    return spool


def run_stage(
    graph: Graph, number: int, source: TensorSource, steps: Sequence[Sequence[I32]], spool: Spool
) -> Iterator[dict[str, NDArray[Any]]]:
    """What a stage gives, step by step; the spool has what it reads, and gets what the next does.

    Args:
        graph: the stage, and its number.
        source: of the weights.
        steps: the samples, those of a step together.
        spool: of `new_spool`.
    """
    tokens = max(sum(map(len, step)) for step in steps)
    stage = Stage(graph, stored_from(source), tokens, spool.directory)
    spool.begin(number + 1)
    first = 0
    for step in steps:
        outputs = stage.run(step, read(spool, number, stage, step, first))
        yield outputs
        spool.append(number + 1, STREAM, outputs)
        first += sum(map(len, step))
    spool.commit(number + 1)


def new_spool(directory: Path, graphs: Sequence[Graph]) -> Spool:
    """For what these stages read, in a directory that is made if it is not there."""
    with storage_errors(directory):
        directory.mkdir(exist_ok=True)
    return Spool(
        directory, {name: graph.values[name].width for graph in graphs for name in graph.inputs}
    )


def read(
    spool: Spool, number: int, stage: Stage, samples: Sequence[I32], first: int = 0
) -> dict[str, F32]:
    """What a stage reads besides the samples, of which the first has row `first`."""
    return spool.read(number, STREAM, stage.inputs, first, sum(map(len, samples)))


def batches(samples: Sequence[I32]) -> Iterator[list[I32]]:
    """Samples for a step each: about STEP_TOKENS tokens."""
    batch: list[I32] = []
    for sample in samples:
        if batch and sum(map(len, batch)) + len(sample) > STEP_TOKENS:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch
