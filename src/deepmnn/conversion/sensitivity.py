"""How much each matrix of a model matters: what noise in it does to the next token.

Samples run through the model stage by stage (graph/stages.py), once as they are and once more for
each part of the model whose matrices are to get a format together, with noise in these matrices
alone: all copies side by side, so that every weight is read once. At the end, the divergence of a
copy's predictions from the clean ones is what the part adds to the loss. It grows with the square
of the noise, as long as the noise is small, and of several parts it adds up. So a part that is
rounded adds what its noise added, in the ratio of the squares.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import I32
from deepmnn.conversion.forward import LEVEL, STREAM, Progress, new_spool, read, staged
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.spool import Spool
from deepmnn.conversion.stage import Stage, stored_from
from deepmnn.formats import F32, PANEL_COLS
from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.levels import optimize
from deepmnn.graph.signatures import SIGNATURES, weights_read
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import TensorSource
from deepmnn.quant.divergence import Rows
from deepmnn.quant.recipe import DEFAULT, RECIPES, ROLES

NOISE = 0.3
"""Of the noise, relative to the root mean square of a row's panel."""

SAMPLES, SAMPLE_TOKENS = 8, 256
"""Text that the copies run through: enough for a mean of divergences, and every part of the model
runs through it once more."""

_STRIDE = 4
"""One prediction of so many is compared: they are the dearest for a small model."""

_CONTROL = 0.01
_LEAST = 0.01
"""Of the control's divergence: what a part adds at least, if noise in it cannot be told apart."""
_EXPERT = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Part:
    """Matrices of a model that get one format.

    Attributes:
        role: of the matrices (quant/recipe.py).
        tensors: of the checkpoint.
        patterns: of a recipe, that match these tensors and no others.
    """

    role: str
    tensors: frozenset[str]
    patterns: tuple[str, ...]


def parts(naive: Graph) -> list[Part]:
    """The parts of a model, in its order: what runs as one product, and the experts of a layer."""
    graph, _ = optimize(naive, LEVEL, None, frozenset({"fuse_linears"}))
    embeddings = weights_read(graph, "looked_up")
    found: dict[frozenset[str], Part] = {}
    for node in graph.nodes:
        for names in _products(graph, node):
            weights = [graph.weights[name] for name in names]
            role = "embedding" if weights[0].name in embeddings else weights[0].role
            if role not in ROLES:
                continue
            read = [tensor for weight in weights for tensor in tensors(weight.expr)]
            patterns = dict.fromkeys(_EXPERT.sub("*", glob.escape(tensor.name)) for tensor in read)
            made = frozenset(tensor.name for tensor in read)
            found.setdefault(made, Part(role, made, tuple(patterns)))
    return list(found.values())


def sensitivities(
    plan: Plan, samples: Sequence[I32], directory: Path, progress: Progress | None = None
) -> dict[Part, float]:
    """What each part adds to the divergence of the next token, in nats, for noise whose square is
    that of the part's numbers.

    Args:
        plan: of the conversion; its formats do not matter.
        samples: token ids, at least one in each.
        directory: for what goes from stage to stage, while this runs.
        progress: called after every step.

    Raises CheckpointError, RequestError (activations that are no numbers) or StorageError.
    """
    graphs = staged(plan.naive, RECIPES[DEFAULT])
    return _Copies(graphs, plan, samples, directory, progress).run()


def _products(graph: Graph, node: Node) -> list[list[str]]:
    """A node's weights, those that are to have one format together: the experts of one shape."""
    if SIGNATURES[node.op].matrices != "routed":
        return [[name] for name in node.weights]
    found: dict[tuple[int, ...], list[str]] = {}
    for name in node.weights:
        found.setdefault(graph.weights[name].shape, []).append(name)
    return list(found.values())


class Noisy:
    """A source with noise in some tensors, the same whenever it is read."""

    def __init__(self, source: TensorSource, names: frozenset[str], noise: float) -> None:
        self._source, self.names, self._noise = source, names, noise

    def read(self, name: str) -> F32:
        """A tensor."""
        w = self._source.read(name)
        if name not in self.names:
            return w
        rng = np.random.default_rng(list(blake2b(name.encode(), digest_size=16).digest()))
        noisy = np.array(w, np.float32)
        for start in range(0, w.shape[-1], PANEL_COLS):
            panel = noisy[..., start : start + PANEL_COLS]
            rms = np.sqrt(np.mean(panel * panel, axis=-1, keepdims=True))
            panel += self._noise * rms * rng.standard_normal(panel.shape, np.float32)
        return noisy


class _Copies:
    """What runs through a model: clean, with noise in each part, and with hardly any (a control:
    any change at all moves the roundings of activations, and the divergence that this makes is no
    part's).
    """

    def __init__(
        self,
        graphs: list[Graph],
        plan: Plan,
        samples: Sequence[I32],
        directory: Path,
        progress: Progress | None,
    ) -> None:
        self._graphs, self._source, self._samples = graphs, plan.source, samples
        self._directory, self._progress, self._done = directory, progress, 0
        self._parts = parts(plan.naive)
        self._noisy = [Noisy(plan.source, part.tensors, NOISE) for part in self._parts]
        self._noisy.append(Noisy(plan.source, self._parts[0].tensors, _CONTROL))
        first = [self._touched(graph) for graph in graphs]
        started = [len(set().union(*first[: index + 1])) for index in range(len(graphs))]
        passes = sum(started[:-1]) + len(graphs) - 1
        self._total = passes + len(samples) * len(self._noisy)
        self._clean = new_spool(directory / "clean", graphs)
        places = [directory / str(index) for index in range(len(self._noisy))]
        self._spools = [new_spool(place, graphs) for place in places]
        self._started: set[int] = set()

    def run(self) -> dict[Part, float]:
        """What `sensitivities` returns."""
        for number, graph in enumerate(self._graphs[:-1]):
            self._advance(number, graph)
        *found, control = self._divergences(len(self._graphs) - 1, self._graphs[-1])
        squared = NOISE * NOISE
        return {
            part: max(mean - control, control * _LEAST) / squared
            for part, mean in zip(self._parts, found, strict=True)
        }

    def _advance(self, number: int, graph: Graph) -> None:
        """Takes everything through a stage."""
        stage = self._stage(graph, self._source)
        clean = read(self._clean, number, stage, self._samples)
        touched = self._touched(graph)
        for index in self._started - touched:
            given = read(self._spools[index], number, stage, self._samples)
            self._write(self._spools[index], number, stage.run(self._samples, given))
        self._write(self._clean, number, stage.run(self._samples, clean))
        del stage
        for index in sorted(touched):
            stage = self._stage(graph, self._noisy[index])
            own = self._spools[index]
            given = read(own, number, stage, self._samples) if index in self._started else clean
            self._write(own, number, stage.run(self._samples, given))
        self._started |= touched

    def _divergences(self, number: int, graph: Graph) -> list[float]:
        """The mean divergence of each from the clean one, by the last stage: norm and output head,
        which take any rows.
        """
        (logits,) = graph.outputs
        reference = self._stage(graph, self._source)
        touched = {index: self._stage(graph, self._noisy[index]) for index in self._touched(graph)}

        def predicted(spool: Spool, stage: Stage, sample: I32) -> Rows:
            given = read(spool, number, stage, [sample], first)
            rows = {name: np.array(value[::_STRIDE]) for name, value in given.items()}
            return Rows(stage.run([sample[::_STRIDE]], rows)[logits])

        sums, tokens, first = np.zeros(len(self._noisy)), 0, 0
        for sample in self._samples:
            clean = predicted(self._clean, reference, sample)
            for index, spool in enumerate(self._spools):
                stage = touched.get(index, reference)
                own = spool if index in self._started else self._clean
                sums[index] += clean.divergence(predicted(own, stage, sample)).sum()
                self._report("predictions")
            tokens += len(sample[::_STRIDE])
            first += len(sample)
        found: list[float] = (sums / tokens).tolist()
        return found

    def _touched(self, graph: Graph) -> set[int]:
        """Those with noise in what a stage reads."""
        read = _read(graph)
        return {index for index, noisy in enumerate(self._noisy) if noisy.names & read}

    def _stage(self, graph: Graph, source: TensorSource) -> Stage:
        tokens = sum(map(len, self._samples))
        return Stage(graph, stored_from(source), tokens, self._directory)

    def _write(self, spool: Spool, number: int, outputs: Mapping[str, NDArray[Any]]) -> None:
        spool.begin(number + 1)
        spool.append(number + 1, STREAM, outputs)
        spool.commit(number + 1)
        self._report(f"layer {number}")

    def _report(self, what: str) -> None:
        """One step more is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, f"sensitivities, {what}")


def _read(graph: Graph) -> frozenset[str]:
    """The checkpoint tensors that a graph reads."""
    return frozenset(
        tensor.name for weight in graph.weights.values() for tensor in tensors(weight.expr)
    )
