"""What a model's matrices multiply on real text: a histogram of each such value.

Samples run through the model as in a calibration (calibrate.py), a stage at a time, and nothing is
rounded. The histograms are what static ranges of activations follow from (quant/observers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepmnn.backends.base import I32
from deepmnn.conversion.calibrate import Progress, find_taps
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.spool import Spool
from deepmnn.conversion.stage import Stage
from deepmnn.graph.levels import optimize
from deepmnn.graph.stages import stages
from deepmnn.quant.observers import Histogram
from deepmnn.quant.recipe import DEFAULT, RECIPES, apply

_LEVEL = 2
_APART = frozenset({"fuse_moe", "fuse_add_norm", "select_rows_early"})
"""As in a calibration."""


def histograms(
    plan: Plan, samples: Sequence[I32], directory: Path, progress: Progress | None = None
) -> dict[str, Histogram]:
    """Of every value that a matrix multiplies, by its name in the graph, in order.

    The engine computes with w8 weights. Memory holds one layer and the values of one sample, disk
    what goes from a layer to the next.

    Args:
        plan: of a conversion.
        samples: token ids, at least one in each, at most the model's context.
        directory: for what goes from stage to stage; it exists and is empty.
        progress: called after every sample.

    Raises RequestError for activations that are no numbers, CheckpointError or StorageError.
    """
    graph, _ = optimize(plan.naive, _LEVEL, None, _APART)
    apply(graph, RECIPES[DEFAULT])
    wanted = {tap.value for tap in find_taps(graph).values()}
    parts = stages(graph, sorted(wanted))
    widths = {name: graph.values[name].width for part in parts for name in part.inputs}
    spool = Spool(directory, widths)
    longest, tokens = max(map(len, samples)), sum(map(len, samples))
    found: dict[str, Histogram] = {}
    for number, part in enumerate(parts):
        stage, first = Stage(part, plan.source, longest, directory), 0
        spool.begin(number + 1)
        for sample in samples:
            given = spool.read(number, stage.inputs, first, len(sample))
            outputs = stage.run([sample], given)
            for name in sorted(wanted.intersection(outputs)):
                found.setdefault(name, Histogram()).add(outputs[name])
            carried = {**given, **outputs}
            spool.append(
                number + 1, {name: carried[name] for name in spool.names if name in carried}
            )
            first += len(sample)
            if progress is not None:
                done = number * tokens + first
                progress(done, len(parts) * tokens, f"ranges of layer {number}")
        spool.commit(number + 1)
    return found
