"""What a model's matrices multiply on real text: histograms, and the sizes of columns.

Samples run through the model as in a calibration (calibrate.py), a stage at a time, and nothing is
rounded: the engine computes with w8 weights. Memory holds one layer and the values of one sample,
disk what goes from a layer to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import I32
from deepmnn.conversion.calibrate import LEAST_TOKENS, tapped_graph
from deepmnn.conversion.forward import Progress, new_spool, run_stage
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.taps import find_taps
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.graph.stages import stages
from deepmnn.quant.moments import check_finite
from deepmnn.quant.observers import Histogram


def histograms(
    plan: Plan, samples: Sequence[I32], directory: Path, progress: Progress | None = None
) -> dict[str, Histogram]:
    """Of every value that a matrix multiplies, by its name in the graph, in order.

    Args:
        plan: of a conversion.
        samples: token ids, at least one in each, at most the model's context.
        directory: for what goes from stage to stage; it exists and is empty.
        progress: called after every sample.

    Raises RequestError for activations that are no numbers, CheckpointError or StorageError.
    """
    graph = tapped_graph(plan)
    wanted = {tap.value for tap in find_taps(graph).values()}
    found: dict[str, Histogram] = {}
    for outputs in _runs(graph, wanted, plan, samples, directory, progress):
        for name in sorted(wanted.intersection(outputs)):
            found.setdefault(name, Histogram()).add(outputs[name])
    return found


def column_sizes(
    plan: Plan,
    part: str,
    samples: Sequence[I32],
    directory: Path,
    progress: Progress | None = None,
) -> dict[str, F32]:
    """Tensor → root mean square of each column that it multiplies, of those whose name has `part`.

    Experts that fewer than LEAST_TOKENS tokens reach are left out. Arguments and errors as of
    `histograms`.
    """
    graph = tapped_graph(plan)
    taps = {name: tap for name, tap in find_taps(graph).items() if part in name}
    sums, rows = dict[str, Any](), dict.fromkeys(taps, 0)
    wanted = {name for tap in taps.values() for name in (tap.value, tap.indices) if name}
    for outputs in _runs(graph, wanted, plan, samples, directory, progress):
        for name, tap in taps.items():
            if tap.value in outputs:
                x = tap.rows(outputs)
                check_finite(x)
                sums[name] = sums.get(name, 0.0) + np.square(x, dtype=np.float64).sum(axis=0)
                rows[name] += len(x)
    enough = [n for n, tap in taps.items() if rows[n] >= (LEAST_TOKENS if tap.indices else 1)]
    return {name: np.sqrt(sums[name] / rows[name]).astype(np.float32) for name in enough}


def _runs(
    graph: Graph,
    wanted: set[str],
    plan: Plan,
    samples: Sequence[I32],
    directory: Path,
    progress: Progress | None,
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """What every stage gives for every sample."""
    parts = stages(graph, sorted(wanted))
    spool = new_spool(directory, parts)
    steps = [[sample] for sample in samples]
    done, work = 0, len(parts) * sum(map(len, samples))
    for number, part in enumerate(parts):
        passed = run_stage(part, number, plan.source, steps, spool)
        for sample, outputs in zip(samples, passed, strict=True):
            yield outputs
            done += len(sample)
            if progress is not None:
                progress(done, work, f"activations of layer {number}")
