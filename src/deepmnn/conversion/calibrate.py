"""Rounds a model's matrices by what they do to real text, layer by layer (GPTQ).

Samples run through two models, as the CPU engine computes them with w8 weights, a stage at a time
(graph/stages.py): the exact one, and the one that is rounded so far. Memory holds one layer, and
disk what goes from one to the next. Within a layer, matrices are rounded in steps (taps.py). What
each multiplies in the rounded model is summed up as second moments (quant/moments.py); one that
adds to the residual stream is changed to make up for what the sum lacks there of the exact model's
(quant/correction.py); then its numbers are rounded by the moments (quant/gptq.py). A matrix that
nothing is known about is rounded to nearest later: the embedding, which multiplies nothing, and
experts that too few tokens reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import I32
from deepmnn.conversion.calibrated import CalibratedSource
from deepmnn.conversion.forward import APART, LEVEL, Progress, batches
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.report.observed import Observed
from deepmnn.conversion.spool import Spool, Stream
from deepmnn.conversion.stage import Stage, stored_from
from deepmnn.conversion.taps import Tap, find_taps, steps
from deepmnn.formats import F32
from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import optimize
from deepmnn.graph.stages import cut, stages
from deepmnn.quant.correction import correction
from deepmnn.quant.moments import Moments
from deepmnn.quant.recipe import DEFAULT, RECIPES, apply
from deepmnn.quant.rounder import Panels, Rounder
from deepmnn.source.source import Source

LEAST_TOKENS = 64
"""An expert that fewer tokens reach is rounded to nearest."""

MOST_ROWS, MOST_NUMBERS, LEAST_ROWS = 1 << 16, 1 << 28, 1 << 14
"""Rows of a dense matrix's inputs that are summed up, at most, and the numbers in them, but so many
rows: more tell little that is new, and the widest matrices would take most of the time. A model
without experts, of which each sees a few tokens only, reads no more samples than that.
"""

MOMENTS_NBYTES = 3 << 29
"""Of second moments in memory at a time; a stage runs again for what does not fit."""

_APART = APART | {"fuse_moe"}
"""Passes that would hide what experts' down-projections multiply, too."""
_ENGINE = DEFAULT


@dataclass(frozen=True)
class Calibration:
    """What the weights of a model were rounded by.

    Attributes:
        samples, tokens: how much text.
        tensors: that were rounded by it.
        scarce: tensors of experts that fewer than LEAST_TOKENS tokens reached: rounded to nearest.
        gains: tensor → what is left of its outputs' squared error, as far as their second moments
            tell, of the tensors that this call rounded.
    """

    samples: int
    tokens: int
    tensors: int
    scarce: tuple[str, ...]
    gains: Mapping[str, float] = field(default_factory=dict)


def calibrate(
    plan: Plan,
    samples: Sequence[I32],
    directory: Path,
    progress: Progress | None = None,
    rounder: Rounder | None = None,
    observed: Observed | None = None,
) -> tuple[CalibratedSource, Calibration]:
    """The plan's source with codes for the matrices that it stores quantised, and what was done.

    Args:
        plan: of the conversion.
        samples: token ids, at least one in each, at most the model's context.
        directory: for its state; it exists. A calibration that was stopped and is called again
            with the same arguments goes on where it was.
        progress: called after every step.
        rounder: what it rounds to; None: the panels of our engine.
        observed: looks at what matrices multiply, and at what layers give.

    Raises CheckpointError, RequestError (activations that are no numbers) or StorageError.
    """
    rounder = rounder or Panels()
    graph = tapped_graph(plan)
    taps = find_taps(graph)
    parts = stages(graph, sorted({name for tap in taps.values() for name in tap.read}))
    if observed is not None:
        observed.expect(taps)
    source = CalibratedSource(plan.source, directory, rounder)
    read = {name for part in parts for name in part.inputs}
    sums = {tap.sum for tap in taps.values() if tap.sum is not None}
    spool = Spool(directory, {name: graph.values[name].width for name in sorted(read | sums)})
    streams: dict[Stream, set[str]] = {"exact": read | sums, "rounded": read}
    begin, scarce, gains = spool.last(), list[str](), dict[str, float]()
    if not any(tap.indices for tap in taps.values()):
        samples = _some(samples, MOST_ROWS)
    cut_up = list(batches(samples))
    formats = rounder.formats(plan.weights)
    for number, part in enumerate(parts):
        targets = {
            name: tap for name, tap in taps.items() if tap.value in part.outputs and name in formats
        }
        if number < begin:  # done before this was stopped; what has no codes was hardly reached
            scarce += [name for name in targets if not source.has(name, formats[name])]
            continue
        place = (number, len(parts))
        layer = _Layer(
            part, plan, number, spool, streams, cut_up, source, progress, place, observed
        )
        scarce += layer.run(targets, formats, rounder, last=number == len(parts) - 1)
        gains |= layer.gains
    tokens = sum(map(len, samples))
    return source, Calibration(len(samples), tokens, source.count, tuple(scarce), gains)


def tapped_graph(plan: Plan) -> Graph:
    """The model as the engine runs it while it is looked at: with w8 weights, and with every value
    that a matrix multiplies.
    """
    graph, _ = optimize(plan.naive, LEVEL, None, _APART)
    apply(graph, RECIPES[_ENGINE])
    return graph


def _some(samples: Sequence[I32], tokens: int) -> list[I32]:
    """As many of the samples as have about so many tokens, evenly spread."""
    most = min(len(samples), -(-tokens * len(samples) // sum(map(len, samples))))
    return [sample for index, sample in enumerate(samples) if _is_chosen(index, most, len(samples))]


def _is_chosen(index: int, some: int, all: int) -> bool:
    """Whether something is one of `some` that are evenly spread among `all`."""
    return (index + 1) * some // all > index * some // all


class _Layer:
    """One stage, run over all samples by two models: the exact one, and the one rounded so far."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        number: int,
        spool: Spool,
        streams: Mapping[Stream, set[str]],
        batches: list[list[I32]],
        source: CalibratedSource,
        progress: Progress | None,
        place: tuple[int, int],
        observed: Observed | None,
    ) -> None:
        self._graph, self._number, self._spool = graph, number, spool
        self._streams, self._batches, self._source, self._plan = streams, batches, source, plan
        self._progress, self._place, self._observed = progress, place, observed
        self._tokens = sum(len(sample) for batch in batches for sample in batch)
        self._passes, self._done = 1, 0
        self.gains: dict[str, float] = {}

    def run(
        self, targets: dict[str, Tap], formats: dict[str, str], rounder: Rounder, last: bool
    ) -> list[str]:
        """Rounds the targets and leaves what the next stage reads; → those hardly reached."""
        order, scarce = steps(self._graph, targets), list[str]()
        self._passes = len(set(order.values())) + 2 * (not last)
        if not last:
            self._spool.begin(self._number + 1)
            self._pass_on("exact", self._plan.source)
        for step in sorted(set(order.values())):
            taps: dict[Tap, list[str]] = {}
            for name in sorted(name for name in targets if order[name] == step):
                stored = self._plan.source.codes(name)  # rounded by somebody else already
                kept = stored is not None and stored.format == formats[name]
                if not kept and not self._source.has(name, formats[name]):
                    taps.setdefault(targets[name], []).append(name)
            for group in _groups(taps, self._source):
                moments = self._sum_up({tap: taps[tap] for tap in group})
                for tap in group:
                    if tap.indices is not None and moments[tap].rows < LEAST_TOKENS:
                        scarce += taps[tap]
                    else:
                        self._round(taps[tap], moments.pop(tap), formats, rounder)
        if not last:
            self._pass_on("rounded", self._source)
            self._spool.commit(self._number + 1)
        return scarce

    def _round(
        self, names: list[str], seen: Moments, formats: dict[str, str], rounder: Rounder
    ) -> None:
        """Rounds matrices that multiply the same inputs."""
        change = correction(seen) if seen.corrects else None
        errors = rounder.feedback(seen.total(), seen.rows)
        del seen
        for name in names:
            w = np.ascontiguousarray(self._plan.source.read(name), np.float32)
            if change is not None:
                w = w + change
            self._source.put(name, formats[name], rounder.round(w, errors, formats[name]))
            self.gains[name] = errors.gain

    def _sum_up(self, taps: dict[Tap, list[str]]) -> dict[Tap, Moments]:
        """The second moments of what the taps give in the rounded model, over the samples."""
        moments, shares = dict[Tap, Moments](), dict[Tap, int]()
        for tap, names in taps.items():
            rows, cols = self._source.shape(names[0])
            moments[tap] = Moments(cols, rows if tap.sum else 0)
            dense = tap.indices is None
            shares[tap] = min(self._tokens, _most_rows(cols)) if dense else self._tokens
        produced = {name for node in self._graph.nodes for name in node.outputs}
        wanted = {name for tap in taps for name in tap.read if name in produced}
        chosen = [
            [tap for tap in taps if _is_chosen(index, shares[tap], self._tokens)]
            for index in range(len(self._batches))
        ]
        graph = cut(self._graph, wanted)
        for index, first, outputs in self._outputs(
            graph, "rounded", self._source, [bool(some) for some in chosen]
        ):
            for tap in chosen[index]:
                x = tap.rows(outputs)
                moments[tap].add(x, self._missing(tap, first, outputs))
            if self._observed is not None:
                seen = {name for tap in chosen[index] for name in (tap.value, tap.indices) if name}
                self._observed.add({name: outputs[name] for name in sorted(seen)}, first)
        if self._observed is not None:
            self._observed.keep(self._number)
        return moments

    def _missing(self, tap: Tap, first: int, outputs: Mapping[str, NDArray[Any]]) -> F32 | None:
        """What the sum that a tap's matrix adds to lacks, in the rounded model."""
        if tap.sum is None:
            return None
        have: F32 = outputs[tap.sum]
        exact = self._spool.read(self._number + 1, "exact", [tap.sum], first, len(have))
        return exact[tap.sum] - have

    def _pass_on(self, stream: Stream, source: Source) -> None:
        """Runs all of the stage, and writes what the next one reads."""
        graph = cut(self._graph, self._streams[stream].intersection(self._graph.outputs))
        for _, first, values in self._outputs(graph, stream, source):
            made = {name: values[name] for name in graph.outputs}
            self._spool.append(self._number + 1, stream, made)
            if self._observed is not None and stream == "rounded":
                rows = len(next(iter(made.values())))
                exact = self._spool.read(self._number + 1, "exact", list(made), first, rows)
                self._observed.compare(exact, made)
        if self._observed is not None:
            self._observed.keep(self._number)

    def _outputs(
        self, graph: Graph, stream: Stream, source: Source, chosen: list[bool] | None = None
    ) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """Runs a part of the stage on chosen batches: (batch, its first row, all values)."""
        tokens = max(sum(map(len, batch)) for batch in self._batches)
        stage = Stage(graph, stored_from(source), tokens, self._spool.directory)
        first = 0
        for index, batch in enumerate(self._batches):
            rows = sum(map(len, batch))
            if chosen is None or chosen[index]:
                given = self._spool.read(self._number, stream, stage.inputs, first, rows)
                yield index, first, {**given, **stage.run(batch, given)}
            first += rows
            self._report(first)
        self._done += 1

    def _report(self, tokens: int) -> None:
        """So many tokens of this pass are done."""
        if self._progress is not None:
            share = min(self._done * self._tokens + tokens, self._passes * self._tokens)
            done = self._place[0] * self._tokens + share // self._passes
            self._progress(done, self._place[1] * self._tokens, f"layer {self._number}")


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
