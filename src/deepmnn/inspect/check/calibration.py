"""Does a calibration set cover what a model will be asked? By what its matrices multiply.

Both sets run through the model a stage at a time, each weight is read once; memory holds one layer,
disk what goes from one to the next.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import I32
from deepmnn.conversion.calibrate import LEAST_TOKENS, tapped_graph
from deepmnn.conversion.forward import Progress, batches, new_spool, run_stage
from deepmnn.conversion.kept import original
from deepmnn.conversion.plan import plan
from deepmnn.conversion.taps import Tap, find_taps
from deepmnn.errors import RequestError
from deepmnn.graph.stages import stages
from deepmnn.inspect.check.coverage import Split, TensorCoverage, distances
from deepmnn.inspect.check.line import Line, judged, skipped
from deepmnn.inspect.check.texts import BUILT_IN, LEAST, Text, read_texts
from deepmnn.quant.recipe import DEFAULT, RECIPES
from deepmnn.source.source import Source

F64 = NDArray[np.float64]

UNUSUAL = 0.05
"""A text is uncovered when no more than this share of calibration texts is as far from its own."""

CERTAIN = 1e-3
"""Chance of as many uncovered texts where both sets are alike."""

MOST_RATIO = 3.0
"""Of a divergence and what chance gives parts of one set: 0.3 to 1.3 where both sets are alike."""

MOST_OUTSIDE = 1e-3
MOST_UNSEEN = 0.005
"""Shares: of values beyond the calibrated range, of choices of experts that no calibration saw."""


@dataclass(frozen=True)
class TensorShift:
    """One tensor: its divergence, what chance gives, and the share beyond the calibrated range."""

    name: str
    divergence: float
    chance: float
    outside: float


@dataclass(frozen=True)
class ExpertUse:
    """One layer's experts.

    Attributes:
        name: of the routing.
        experts: how many there are.
        unseen: those that no token of the calibration set chose.
        scarce: those that fewer than LEAST_TOKENS chose, too few to round by.
        share: of the other set's choices that the unseen ones have.
        scarce_share: the same of the scarce ones, the unseen included.
    """

    name: str
    experts: int
    unseen: tuple[int, ...]
    scarce: int
    share: float
    scarce_share: float


@dataclass(frozen=True)
class Kind:
    """Texts that look alike.

    Attributes:
        name: "Chinese", "code", ...
        texts: of the other set.
        uncovered: of these.
        calibration: texts of the calibration set.
        example: the beginning of the one that is furthest from the calibration set.
        distance: its distance, in those that calibration texts have from one another.
    """

    name: str
    texts: int
    uncovered: int
    calibration: int
    example: str
    distance: float


@dataclass(frozen=True)
class Coverage:
    """What a calibration check found.

    Attributes:
        calibration, against: texts and tokens of each set.
        tensors: in the order in which the model computes them.
        experts: of each layer that routes.
        kinds: of the other set's texts, the least covered first.
        uncovered: how many texts.
    """

    calibration: tuple[int, int]
    against: tuple[int, int]
    tensors: tuple[TensorShift, ...]
    experts: tuple[ExpertUse, ...]
    kinds: tuple[Kind, ...]
    uncovered: int

    @property
    def ratio(self) -> float:
        """Median over the tensors of the divergence over chance's."""
        return float(np.median([t.divergence / max(t.chance, 1e-9) for t in self.tensors]))

    @property
    def is_far(self) -> bool:
        """Whether more texts are uncovered than chance has it."""
        return _tail(self.against[0], self.uncovered) < CERTAIN

    def lines(self) -> list[Line]:
        """A line for each figure."""
        return [self._texts(), self._distribution(), self._range(), self._experts()]

    def _texts(self) -> Line:
        texts = self.against[0]
        said = f"{self.uncovered} of {texts} are far from every calibration text"
        expected = f"about {UNUSUAL:.0%}, {UNUSUAL * texts:.0f}"
        share = self.uncovered / texts
        return judged("texts", not self.is_far, said, expected, self._missing(), share)

    def _distribution(self) -> Line:
        worst = max(self.tensors, key=lambda t: t.divergence / max(t.chance, 1e-9))
        median = float(np.median([tensor.divergence for tensor in self.tensors]))
        said = f"KL {median:.3g} nats, {self.ratio:.1f} times what chance gives (median of "
        said += f"{len(self.tensors)} tensors); most in {worst.name}, {worst.divergence:.3g}"
        right = self.ratio < MOST_RATIO
        expected = f"below {MOST_RATIO:g} times"
        return judged("activations", right, said, expected, self._missing(), self.ratio)

    def _missing(self) -> str:
        """Which texts the calibration set lacks: of a kind that it has none of, or that are far."""
        missing = [
            kind
            for kind in self.kinds
            if not kind.calibration or kind.uncovered > 2 * UNUSUAL * kind.texts
        ]
        if not missing:
            return "It holds all kinds of texts of the other set, in other shares: take them alike."
        return "Add such texts to the calibration set: " + "; ".join(
            f"{kind.name} ({kind.uncovered} of {kind.texts} far from it, it has "
            f"{kind.calibration}), as in {kind.example[:48]!r}"
            for kind in missing[:3]
        )

    def _range(self) -> Line:
        worst = max(self.tensors, key=lambda tensor: tensor.outside)
        mean = float(np.mean([tensor.outside for tensor in self.tensors]))
        said = f"{mean:.1e} of all values; most in {worst.name}, {worst.outside:.1e}"
        advice = "A static range would clip them: add texts like the prompts, or more of them."
        right = worst.outside <= MOST_OUTSIDE
        name = "values beyond the calibrated range"
        return judged(name, right, said, f"at most {MOST_OUTSIDE:g}", advice, worst.outside)

    def _experts(self) -> Line:
        name = "experts that calibration never saw"
        if not self.experts:
            return skipped(name, "the model has no experts")
        unseen = sum(len(layer.unseen) for layer in self.experts)
        count = sum(layer.experts for layer in self.experts)
        scarce = sum(layer.scarce for layer in self.experts)
        worst = max(self.experts, key=lambda layer: layer.share)
        said = f"{unseen} of {count}, {scarce} see fewer than {LEAST_TOKENS} tokens"
        if unseen:
            said += f"; in {worst.name} the prompts choose them in {worst.share:.2%} of cases"
        advice = "Their weights are rounded without calibration: add texts, or take more of them."
        right = worst.share <= MOST_UNSEEN
        return judged(
            name, right, said, f"at most {MOST_UNSEEN:.1%} of choices", advice, worst.share
        )


def check_calibration(
    name: str | os.PathLike[str],
    calibration: Path | None,
    against: Path,
    count: int,
    progress: Progress | None = None,
    preparing: Progress | None = None,
) -> Coverage:
    """How well a calibration set covers other texts, on this model.

    Args:
        name: a checkpoint, or a converted model.
        calibration: a file as for `text/samples.py`, or of token ids; None: deepmnn's own set.
        against: the same.
        count: texts of each set, at most.
        progress: called after every layer's batch of texts.
        preparing: called while a checkpoint of the hub is downloaded.

    Raises as `original`, `read_texts`, RequestError for too few texts, CheckpointError and
    StorageError.
    """
    with original(name, preparing) as source:
        first, second = (read_texts(source, path, count) for path in (calibration, against))
        if len(first) < LEAST:
            raise RequestError(
                f"{calibration or BUILT_IN} holds {len(first)} texts",
                f"at least {LEAST}, to know how far texts are from one another by chance",
            )
        with tempfile.TemporaryDirectory(prefix="deepmnn-check-") as folder:
            run = _Run(source, first, second)
            run.go(Path(folder), progress)
    return run.coverage()


class _Run:
    """Both sets on their way through the model."""

    def __init__(self, source: Source, first: Sequence[Text], second: Sequence[Text]) -> None:
        self._source, self._first, self._second = source, first, second
        self._samples: list[I32] = [text.ids for text in (*first, *second)]
        self._split = Split.of(len(first), len(second))
        self._tensors: list[TensorShift] = []
        self._features: list[NDArray[np.float32]] = []
        self._experts: list[ExpertUse] = []

    def go(self, directory: Path, progress: Progress | None) -> None:
        """Runs it, a stage at a time."""
        graph = tapped_graph(plan(self._source, RECIPES[DEFAULT]))
        taps = find_taps(graph).values()
        values = sorted({tap.value for tap in taps})
        routed = _routed(taps)
        parts = stages(graph, sorted({*values, *routed}))
        spool, steps = new_spool(directory, parts), list(batches(self._samples))
        work, done = len(parts) * len(steps), 0
        for number, part in enumerate(parts):
            seen: dict[str, TensorCoverage] = {}
            used = {name: np.zeros((2, count), np.int64) for name, count in routed.items()}
            first = 0
            passed = run_stage(part, number, self._source, steps, spool)
            for outputs, step in zip(passed, steps, strict=True):
                self._add(step, outputs, values, seen)
                for name in routed.keys() & outputs.keys():
                    self._count(used[name], outputs[name], step, first)
                first += len(step)
                done += 1
                if progress is not None:
                    progress(done, work, f"layer {number}")
            self._close(seen, {name: used[name] for name in part.outputs if name in used})

    def _add(
        self,
        step: Sequence[I32],
        outputs: Mapping[str, NDArray[Any]],
        values: Sequence[str],
        seen: dict[str, TensorCoverage],
    ) -> None:
        """What a batch of texts gave to each tensor."""
        tokens = sum(map(len, step))
        for name in values:
            if name not in outputs:
                continue
            rows = outputs[name].reshape(tokens, -1)
            if name not in seen:
                seen[name] = TensorCoverage(name, rows, self._split)
            for part in np.split(rows, np.cumsum([len(sample) for sample in step])[:-1]):
                seen[name].add(part)

    def _count(
        self, used: NDArray[np.int64], chosen: NDArray[Any], step: Sequence[I32], first: int
    ) -> None:
        """How often each set's tokens chose each expert. first: the number of the first text."""
        at = 0
        for number, sample in enumerate(step, first):
            rows = chosen[at : at + len(sample)].reshape(-1)
            used[int(number >= len(self._first))] += np.bincount(rows, minlength=used.shape[1])
            at += len(sample)

    def _close(
        self, seen: Mapping[str, TensorCoverage], used: Mapping[str, NDArray[np.int64]]
    ) -> None:
        """Sums a layer up: of what its tensors held a few numbers stay."""
        for name, tensor in seen.items():
            self._tensors.append(
                TensorShift(name, tensor.divergence, tensor.chance, tensor.outside)
            )
            self._features.append(np.stack(tensor.features))
        for name, (calibrated, asked) in used.items():
            unseen, scarce = calibrated == 0, calibrated < LEAST_TOKENS
            total = max(int(asked.sum()), 1)
            self._experts.append(
                ExpertUse(
                    name.removesuffix(".top_k"),
                    len(calibrated),
                    tuple(np.flatnonzero(unseen).tolist()),
                    int(scarce.sum()),
                    float(asked[unseen].sum() / total),
                    float(asked[scarce].sum() / total),
                )
            )

    def coverage(self) -> Coverage:
        """What came out."""
        features = np.concatenate(self._features, axis=2)
        far = distances(features, len(self._first))
        is_uncovered = far.chance <= UNUSUAL
        have = Counter(text.kind for text in self._first)
        kinds = []
        for kind in dict.fromkeys(text.kind for text in self._second):
            own = [at for at, text in enumerate(self._second) if text.kind == kind]
            worst = max(own, key=lambda at: far.found[at])
            uncovered = int(is_uncovered[own].sum())
            shown = " ".join(self._second[worst].beginning.split())[:120]
            distance = float(far.found[worst])
            kinds.append(Kind(kind, len(own), uncovered, have[kind], shown, distance))
        kinds.sort(key=lambda kind: (-kind.uncovered / kind.texts, -kind.distance))
        return Coverage(
            _size(self._first),
            _size(self._second),
            tuple(self._tensors),
            tuple(self._experts),
            tuple(kinds),
            int(is_uncovered.sum()),
        )


def _size(texts: Sequence[Text]) -> tuple[int, int]:
    return len(texts), sum(len(text.ids) for text in texts)


def _routed(taps: Iterable[Tap]) -> dict[str, int]:
    """The values that say which experts are chosen, and how many experts there are."""
    found: dict[str, int] = {}
    for tap in taps:
        if tap.indices is not None:
            found[tap.indices] = max(found.get(tap.indices, 0), tap.expert + 1)
    return found


def _tail(texts: int, uncovered: int) -> float:
    """The chance that at least so many of alike texts are uncovered."""
    return sum(
        comb(texts, k) * UNUSUAL**k * (1 - UNUSUAL) ** (texts - k)
        for k in range(uncovered, texts + 1)
    )
