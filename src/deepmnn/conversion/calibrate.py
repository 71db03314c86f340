"""Rounds a model's matrices by what they do to real text, layer by layer (GPTQ).

Samples run through the model as the CPU engine computes it with w8 weights, a stage at a time
(graph/stages.py): memory holds one layer, and disk what goes from one to the next. What each matrix
multiplies is summed up as second moments (quant/moments.py), and its numbers are rounded by them
(quant/gptq.py). A matrix that nothing is known about is rounded to nearest later: the embedding,
which multiplies nothing, and experts that too few tokens reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core
from deepmnn.backends.base import I32
from deepmnn.conversion.calibrated import CalibratedSource
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.report.observed import Observed
from deepmnn.conversion.spool import Spool
from deepmnn.conversion.stage import Stage
from deepmnn.formats import F32, named
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import optimize
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.graph.stages import stages
from deepmnn.graph.tensors import tensors
from deepmnn.quant.gptq import damping_for, feedback, gptq
from deepmnn.quant.moments import Moments
from deepmnn.quant.recipe import DEFAULT, RECIPES, apply
from deepmnn.quant.rotation import rotate_moments

Progress = Callable[[int, int, str], None]
"""Called with (work done, work in all, what)."""

LEAST_TOKENS = 64
"""An expert that fewer tokens reach is rounded to nearest."""

MOST_ROWS, MOST_NUMBERS, LEAST_ROWS = 1 << 16, 1 << 28, 1 << 14
"""Rows of a dense matrix's inputs that are summed up, at most, and the numbers in them, but so many
rows: more tell little that is new, and the widest matrices would take most of the time.
"""

MOMENTS_NBYTES = 3 << 29
"""Of second moments in memory at a time; a stage runs again for what does not fit."""

_LEVEL = 2
_APART = frozenset({"fuse_moe", "fuse_add_norm", "select_rows_early"})
"""Passes that would hide what experts' down-projections multiply, or carry two values from layer
to layer."""
_STEP_TOKENS = 2048
_ENGINE = DEFAULT


@dataclass(frozen=True)
class Tap:
    """What a matrix multiplies: rows of a value, with `expert` those that chose it.

    per_choice: the value has a row for each choice.
    """

    value: str
    indices: str | None = None
    expert: int = 0
    per_choice: bool = False

    def rows(self, outputs: Mapping[str, NDArray[Any]]) -> F32:
        """Of the values of some samples."""
        x: F32 = outputs[self.value]
        if self.indices is None:
            return x
        chosen = outputs[self.indices] == self.expert
        if self.per_choice:
            return np.asarray(x.reshape(chosen.size, -1)[chosen.reshape(-1)])
        return np.asarray(x[chosen.any(axis=1)])


@dataclass(frozen=True)
class Calibration:
    """What the weights of a model were rounded by.

    Attributes:
        samples, tokens: how much text.
        tensors: that were rounded by it.
        scarce: tensors of experts that fewer than LEAST_TOKENS tokens reached: rounded to nearest.
    """

    samples: int
    tokens: int
    tensors: int
    scarce: tuple[str, ...]


def calibrate(
    plan: Plan,
    samples: Sequence[I32],
    directory: Path,
    progress: Progress | None = None,
    observed: Observed | None = None,
) -> tuple[CalibratedSource, Calibration]:
    """The plan's source with codes for the matrices that it stores quantised, and what was done.

    Args:
        plan: of the conversion.
        samples: token ids, at least one in each, at most the model's context.
        directory: for its state; it exists. A calibration that was stopped and is called again
            with the same arguments goes on where it was.
        progress: called after every step.
        observed: looks at what matrices multiply.

    Raises CheckpointError, RequestError (activations that are no numbers) or StorageError.
    """
    graph, _ = optimize(plan.naive, _LEVEL, None, _APART)
    apply(graph, RECIPES[_ENGINE])
    taps = find_taps(graph)
    wanted = {tap.value for tap in taps.values()} | {tap.indices for tap in taps.values()} - {None}
    parts = stages(graph, sorted(str(name) for name in wanted))
    if observed is not None:
        observed.expect(taps)
    source = CalibratedSource(plan.source, directory)
    widths = {name: graph.values[name].width for part in parts for name in part.inputs}
    spool = Spool(directory, widths)
    begin, scarce = spool.last(), list[str]()
    batches = list(_batches(samples))
    formats = _formats(plan)
    for number, part in enumerate(parts):
        targets = {
            name: tap for name, tap in taps.items() if tap.value in part.outputs and name in formats
        }
        if number < begin:  # done before this was stopped; what has no codes was hardly reached
            scarce += [name for name in targets if not source.has(name, formats[name])]
            continue
        place = (number, len(parts))
        layer = _Layer(part, plan, number, spool, batches, source, progress, place, observed)
        scarce += layer.run(targets, formats, last=number == len(parts) - 1)
    tokens = sum(map(len, samples))
    return source, Calibration(len(samples), tokens, source.count, tuple(scarce))


def find_taps(graph: Graph) -> dict[str, Tap]:
    """Checkpoint tensor → what it multiplies, of every matrix that multiplies an input."""
    found: dict[str, Tap] = {}
    for node in graph.nodes:
        shapes = [graph.weights[name].shape for name in node.weights]
        readings = SIGNATURES[node.op].readings(shapes)
        for index, (name, reading) in enumerate(zip(node.weights, readings, strict=True)):
            if reading == "routed":
                per_choice = bool(node.attrs["per_choice"])
                tap = Tap(node.inputs[0], node.inputs[1], index, per_choice)
            elif reading == "in_order":
                tap = Tap(node.inputs[0])
            else:
                continue
            for tensor in tensors(graph.weights[name].expr):
                found[tensor.name] = tap
    return found


def _formats(plan: Plan) -> dict[str, str]:
    """Checkpoint tensor → the quantised format that it is stored in; without those looked up."""
    found: dict[str, str] = {}
    for weight in plan.weights:
        if named(weight.format).is_quantized and weight.role != "embedding":
            found.update({tensor.name: weight.format for tensor in tensors(weight.expr)})
    return found


def _batches(samples: Sequence[I32]) -> Iterator[list[I32]]:
    """Samples for a step each: about _STEP_TOKENS tokens."""
    batch: list[I32] = []
    for sample in samples:
        if batch and sum(map(len, batch)) + len(sample) > _STEP_TOKENS:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


class _Layer:
    """One stage, run over all samples."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        number: int,
        spool: Spool,
        batches: list[list[I32]],
        source: CalibratedSource,
        progress: Progress | None,
        place: tuple[int, int],
        observed: Observed | None,
    ) -> None:
        self._graph, self._number, self._spool = graph, number, spool
        self._batches, self._source, self._plan = batches, source, plan
        self._progress, self._place, self._observed = progress, place, observed
        self._tokens = sum(len(sample) for batch in batches for sample in batch)

    def run(self, targets: dict[str, Tap], formats: dict[str, str], last: bool) -> list[str]:
        """Rounds the targets and leaves what the next stage reads; → those hardly reached."""
        taps: dict[Tap, list[str]] = {}
        for name in sorted(targets):
            stored = self._plan.source.codes(name)  # rounded by somebody else already
            kept = stored is not None and stored.format == formats[name]
            if not kept and not self._source.has(name, formats[name]):
                taps.setdefault(targets[name], []).append(name)
        groups = list(_groups(taps, self._source))
        threads, scarce = _core.available_cores(), []
        rotate = partial(_core.rotate, threads=threads)
        for index, group in enumerate(groups or [[]]):
            moments = self._sum_up(group, taps, index == 0, write=index == 0 and not last)
            for tap in group:
                if tap.indices is not None and moments[tap].rows < LEAST_TOKENS:
                    scarce += taps[tap]
                    continue
                seen = moments.pop(tap)
                errors = feedback(rotate_moments(seen.total(), rotate), damping_for(seen.rows))
                del seen
                for name in taps[tap]:
                    w = np.ascontiguousarray(self._plan.source.read(name), np.float32)
                    codes = gptq(rotate(w), errors, formats[name])
                    self._source.put(name, codes, threads)
        if self._observed is not None:
            self._observed.keep(self._number)
        if not last:
            self._spool.commit(self._number + 1)
        return scarce

    def _sum_up(
        self, group: list[Tap], taps: dict[Tap, list[str]], observe: bool, write: bool
    ) -> dict[Tap, Moments]:
        """The second moments of what the taps give, over all samples."""
        moments = {tap: Moments(self._source.shape(taps[tap][0])[1]) for tap in group}
        tokens = max(sum(map(len, batch)) for batch in self._batches)
        directory = self._spool.directory
        stage = Stage(self._graph, self._plan.source, tokens, directory)
        if write:
            self._spool.begin(self._number + 1)
        first = 0
        for batch in self._batches:
            rows = sum(map(len, batch))
            given = self._spool.read(self._number, stage.inputs, first, rows)
            made = stage.run(batch, given)
            if observe and self._observed is not None:
                self._observed.add(made, first)
            outputs = {**given, **made}
            for tap in group:
                x = tap.rows(outputs)
                if tap.indices is None:
                    stride = -(-self._tokens // _most_rows(x.shape[1]))
                    x = x[-first % stride :: stride]
                moments[tap].add(x)
            if write:
                self._spool.append(self._number + 1, self._carried(outputs))
            first += rows
            if self._progress is not None:
                done = self._place[0] * self._tokens + first
                self._progress(done, self._place[1] * self._tokens, f"layer {self._number}")
        return moments

    def _carried(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, F32]:
        """What later stages read."""
        return {name: outputs[name] for name in self._spool.names if name in outputs}


def _most_rows(cols: int) -> int:
    """Of the inputs of a dense matrix, to be summed up."""
    return min(MOST_ROWS, max(LEAST_ROWS, MOST_NUMBERS // cols))


def _groups(taps: dict[Tap, list[str]], source: CalibratedSource) -> Iterator[list[Tap]]:
    """Taps whose second moments fit in memory together."""
    group: list[Tap] = []
    nbytes = 0
    for tap, names in taps.items():
        size = 4 * source.shape(names[0])[1] ** 2
        if group and nbytes + size > MOMENTS_NBYTES:
            yield group
            group, nbytes = [], 0
        group.append(tap)
        nbytes += size
    if group:
        yield group
