"""Does a calibration set cover what a model will be asked? By what its matrices multiply.

Both sets run through the model a stage at a time, each weight is read once; memory holds one layer,
disk what goes from one to the next.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from deepmnn.inspect.check.covered import UNUSUAL, Coverage, ExpertUse, Kind, TensorShift
from deepmnn.inspect.check.texts import BUILT_IN, LEAST, Text, read_texts
from deepmnn.quant.recipe import DEFAULT, RECIPES
from deepmnn.source.source import Source

F64 = NDArray[np.float64]


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
