"""What matrices multiply while a model is calibrated: histograms, and the experts' tokens.

Facts of a stage go into the calibration's directory as soon as it is done, so that one that was
stopped and goes on has them all.
"""

from __future__ import annotations

import json
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
        self._histograms: dict[str, Histogram] = {}
        self._chosen: dict[str, NDArray[np.int64]] = {}

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

    def keep(self, stage: int, output_error: float | None = None) -> None:
        """The stage is done: its facts go to disk.

        output_error: root mean square of the error of what it gives to the next one, as a share.
        """
        path = self._directory / f"observed-{stage:04d}.json"
        facts = {
            "activations": [asdict(self._activation(name)) for name in sorted(self._histograms)],
            "experts": [self._expert(name) for name in sorted(self._chosen)],
            "output_error": output_error,
        }
        part = path.with_suffix(".part")
        with storage_errors(path):
            part.write_text(json.dumps(facts))
            os.replace(part, path)
        self._histograms, self._chosen = {}, {}

    def activations(self) -> tuple[ActivationFacts, ...]:
        """Of all stages that are done."""
        return tuple(
            _activation(found) for _, kept in self._kept() for found in kept["activations"]
        )

    def experts(self) -> tuple[ExpertFacts, ...]:
        """Of all stages that are done."""
        return tuple(
            ExpertFacts(found["layer"], tuple(found["tokens"]))
            for _, kept in self._kept()
            for found in kept["experts"]
        )

    def output_errors(self) -> dict[int, float]:
        """Stage → error of what it gives to the next one, where that was computed."""
        errors = {stage: kept["output_error"] for stage, kept in self._kept()}
        return {stage: error for stage, error in errors.items() if error is not None}

    def _kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for path in sorted(self._directory.glob("observed-????.json")):
            yield int(path.stem[-4:]), read_object(path, StorageError)

    def _activation(self, name: str) -> ActivationFacts:
        histogram, readers = self._histograms[name], self._readers[name]
        ranges = {method: static_range(histogram, method) for method in METHODS}
        bars, layer = _bars(histogram), layer_of(readers[0])
        figures = (histogram.count, histogram.zeros, histogram.largest, bars, ranges)
        return ActivationFacts(name, layer, tuple(sorted(readers)), *figures)

    def _expert(self, name: str) -> dict[str, Any]:
        return {"layer": layer_of(name), "tokens": self._chosen[name].tolist()}


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
