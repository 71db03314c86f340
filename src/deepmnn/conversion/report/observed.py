"""What matrices multiply while a model is calibrated: histograms, and the experts' tokens.

Facts go into the calibration's directory before the codes that follow from the same values, so
that a calibration that was stopped and goes on has them all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepmnn.artifact.directory import storage_errors
from deepmnn.conversion.report.facts import ActivationFacts, ExpertFacts, layer_of
from deepmnn.errors import StorageError
from deepmnn.quant.observers import METHODS, Histogram, StaticRange, static_range
from deepmnn.source.json_file import read_object

_NUMBERS = 1 << 21
"""Of a value that are looked at, about: rows evenly spread over all tokens."""

_BARS = 64


class Tap(Protocol):
    """What a matrix multiplies: a value, with `indices` only the rows that chose `expert`."""

    @property
    def value(self) -> str: ...  # noqa: D102
    @property
    def indices(self) -> str | None: ...  # noqa: D102
    @property
    def expert(self) -> int: ...  # noqa: D102


class Observed:
    """Looks at the values of a model's stages.

    Args:
        directory: of the calibration's state; it exists.
        tokens: in all samples.
    """

    def __init__(self, directory: Path, tokens: int) -> None:
        self._directory, self._tokens = directory, tokens
        self._readers: dict[str, list[str]] = {}
        self._experts: dict[str, int] = {}
        self._clear()

    def expect(self, taps: Mapping[str, Tap]) -> None:
        """Says what to look at: checkpoint tensor → what it multiplies."""
        for tensor, tap in taps.items():
            self._readers.setdefault(tap.value, []).append(tensor)
            if tap.indices is not None:
                count = max(self._experts.get(tap.indices, 0), tap.expert + 1)
                self._experts[tap.indices] = count

    def add(self, outputs: Mapping[str, NDArray[Any]], first: int) -> None:
        """Values of a stage, [tokens, width] each, from token `first` of all samples on."""
        for name, x in outputs.items():
            if name in self._experts:
                found = np.bincount(x.reshape(-1), minlength=self._experts[name])
                self._chosen[name] = self._chosen.get(name, 0) + found
            elif name in self._readers:
                stride = -(-self._tokens * x.shape[1] // _NUMBERS)
                self._histograms.setdefault(name, Histogram()).add(x[-first % stride :: stride])

    def compare(
        self, exact: Mapping[str, NDArray[Any]], rounded: Mapping[str, NDArray[Any]]
    ) -> None:
        """What a stage gives to the next one in the exact model, and in the rounded one."""
        for name, x in exact.items():
            self._squares += float(np.square(x, dtype=np.float64).sum())
            self._errors += float(np.square(rounded[name] - x, dtype=np.float64).sum())

    def keep(self, stage: int) -> None:
        """What was seen of a stage since the last call goes to disk, with what is there."""
        path = self._directory / f"observed-{stage:04d}.json"
        facts: dict[str, Any] = {"activations": {}, "experts": {}, "output_error": None}
        if path.is_file():
            facts = read_object(path, StorageError)
        facts["activations"] |= {name: asdict(self._activation(name)) for name in self._histograms}
        facts["experts"] |= {name: found.tolist() for name, found in self._chosen.items()}
        if self._squares:
            facts["output_error"] = math.sqrt(self._errors / self._squares)
        part = path.with_suffix(".part")
        with storage_errors(path):
            part.write_text(json.dumps(facts))
            os.replace(part, path)
        self._clear()

    def activations(self) -> tuple[ActivationFacts, ...]:
        """Of all stages."""
        found = (kept["activations"] for _, kept in self._kept())
        return tuple(_activation(each[name]) for each in found for name in sorted(each))

    def experts(self) -> tuple[ExpertFacts, ...]:
        """Of all stages."""
        found = (kept["experts"] for _, kept in self._kept())
        return tuple(
            ExpertFacts(layer_of(name), tuple(each[name]))
            for each in found
            for name in sorted(each)
        )

    def output_errors(self) -> dict[int, float]:
        """Stage → error of what it gives to the next one, where that was computed."""
        errors = {stage: kept["output_error"] for stage, kept in self._kept()}
        return {stage: error for stage, error in errors.items() if error is not None}

    def _clear(self) -> None:
        self._histograms: dict[str, Histogram] = {}
        self._chosen: dict[str, NDArray[np.int64]] = {}
        self._squares = self._errors = 0.0

    def _kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for path in sorted(self._directory.glob("observed-????.json")):
            yield int(path.stem[-4:]), read_object(path, StorageError)

    def _activation(self, name: str) -> ActivationFacts:
        histogram, readers = self._histograms[name], self._readers[name]
        ranges = {method: static_range(histogram, method) for method in METHODS}
        bars, layer = _bars(histogram), layer_of(readers[0])
        figures = (histogram.count, histogram.zeros, histogram.largest, bars, ranges)
        return ActivationFacts(name, layer, tuple(sorted(readers)), *figures)


def _bars(histogram: Histogram) -> tuple[int, ...]:
    if not histogram.largest:
        return (0,) * _BARS
    view = next(histogram.views())
    middles = (np.arange(len(view.counts)) + 0.5) * (view.width / histogram.largest)
    places = np.minimum((middles * _BARS).astype(np.int64), _BARS - 1)
    bars = np.bincount(places, view.counts, _BARS).astype(np.int64)
    return tuple(bars.tolist())


def _activation(fields: dict[str, Any]) -> ActivationFacts:
    ranges = {method: StaticRange(**found) for method, found in fields["ranges"].items()}
    lists = {"readers": tuple(fields["readers"]), "bars": tuple(fields["bars"])}
    return ActivationFacts(**{**fields, **lists, "ranges": ranges})
