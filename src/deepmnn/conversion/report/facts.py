"""What a report says: report.json is these facts, report.html shows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deepmnn.formats import named
from deepmnn.graph.ir import Weight
from deepmnn.graph.levels import PassResult
from deepmnn.quant.observers import MAX_DIVERGENCE, StaticRange

FORMAT_VERSION = 2
"""Of report.json."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_DIGITS = 6


@dataclass(frozen=True)
class WeightFacts:
    """A stored weight.

    Attributes:
        layer: None outside the layers.
        nbytes: stored bytes.
        origin: how the checkpoint stores it: "BF16", "Q6_K", "gptq"; "" for random weights.
        error: root mean square of what rounding changed, as a share of that of the numbers;
            measured on some rows. None where there was nothing to compare with.
    """

    name: str
    role: str
    format: str
    layer: int | None
    shape: tuple[int, ...]
    nbytes: int
    origin: str = ""
    error: float | None = None

    @classmethod
    def of(cls, weight: Weight, origin: str = "", error: float | None = None) -> WeightFacts:
        """A weight of a graph."""
        layer = layer_of(weight.name)
        shown = weight.name, weight.role, weight.format
        return cls(*shown, layer, weight.shape, weight.nbytes, origin, error)


@dataclass(frozen=True)
class StoredFacts:
    """Weights that the checkpoint stores alike, and the converted model, too.

    Attributes:
        origin, format: as of a weight. Those in a kept format have the checkpoint's own codes.
        count: of the weights; `numbers` is how many they have, `nbytes` their stored bytes.
        error: as of a weight, of all together.
    """

    origin: str
    format: str
    count: int
    numbers: int
    nbytes: int
    error: float | None

    @property
    def is_kept(self) -> bool:
        """Whether their codes are the checkpoint's own."""
        return named(self.format).is_kept


@dataclass(frozen=True)
class LayerFacts:
    """A layer; None is what lies outside of all.

    Attributes:
        nbytes: format → stored bytes.
        weight_error: as of a weight, of all its matrices together.
        output_error: root mean square of the error of what it gives to the next layer, as a share
            of that; None without a calibration.
        kl: what rounding it adds to the model's KL divergence, where a search has predicted it.
    """

    layer: int | None
    nbytes: dict[str, int]
    weight_error: float | None
    output_error: float | None
    kl: float | None


@dataclass(frozen=True)
class ActivationFacts:
    """What matrices multiply.

    Attributes:
        name: the value's, in the graph.
        layer: None outside the layers.
        readers: the checkpoint tensors that it multiplies.
        count: values that were looked at, `zeros` of them 0.
        largest: the largest magnitude.
        bars: how many of the others have a magnitude in each of equal parts of 0 to largest.
        ranges: method → where a static int8 range would clip it, and what that costs.
    """

    name: str
    layer: int | None
    readers: tuple[str, ...]
    count: int
    zeros: int
    largest: float
    bars: tuple[int, ...]
    ranges: dict[str, StaticRange]

    @property
    def is_beyond(self) -> bool:
        """Whether the best range by KL costs more than it should."""
        return not self.ranges["kl"].divergence < MAX_DIVERGENCE


@dataclass(frozen=True)
class ExpertFacts:
    """How many tokens of the calibration chose each expert of a layer."""

    layer: int | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class LevelFacts:
    """Numbers of weights in one format, rotated and divided by their scales.

    Attributes:
        levels: what codes stand for, from the least.
        low, high: the span of all bars; the outer ones hold what lies beyond.
        bars: how many numbers lie in each of equal parts of it.
    """

    format: str
    levels: tuple[int, ...]
    low: float
    high: float
    bars: tuple[int, ...]


@dataclass(frozen=True)
class CalibrationFacts:
    """What weights were rounded by: how much text, how many tensors, and those hardly reached."""

    samples: int
    tokens: int
    tensors: int
    scarce: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """How far predictions are from the checkpoint's on text that nothing was rounded by.

    Attributes:
        tokens: how many were predicted.
        kl, kl_99: mean KL divergence in nats, and what 99 % of the tokens are below.
        same_first_choice: share of the tokens whose most likely next one is the same.
    """

    tokens: int
    kl: float
    kl_99: float
    same_first_choice: float


@dataclass(frozen=True)
class Point:
    """Formats for a whole model: bytes of its weights, and the KL divergence that is predicted."""

    nbytes: int
    kl: float


@dataclass(frozen=True)
class Search:
    """A search under a budget.

    Attributes:
        points: the best there are for their bytes, from the fewest bytes on.
        chosen: the one that was taken.
        parts: pattern of a recipe → what that part adds to the KL divergence as chosen, predicted.
    """

    points: tuple[Point, ...]
    chosen: Point
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Facts:
    """Of one conversion.

    Attributes:
        source: the name of the checkpoint's directory or file.
        source_nbytes: of its tensors; 0 for random weights.
        seconds: what took how long; the only facts that differ when all is done again.
    """

    deepmnn_version: str
    source: str
    model_type: str
    quant: str
    recipe: dict[str, Any]
    optimize_level: int
    parameters: int
    source_nbytes: int
    nbytes: int
    nodes_level_0: int
    nodes: int
    dropped: tuple[str, ...]
    unused: tuple[str, ...]
    passes: tuple[PassResult, ...]
    stored: tuple[StoredFacts, ...]
    layers: tuple[LayerFacts, ...]
    weights: tuple[WeightFacts, ...]
    levels: tuple[LevelFacts, ...]
    calibration: CalibrationFacts | None = None
    activations: tuple[ActivationFacts, ...] = ()
    experts: tuple[ExpertFacts, ...] = ()
    judged: Judged | None = None
    search: Search | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def bits_per_weight(self, nbytes: int) -> float:
        """Bits of stored weights for each number that the model reads from the checkpoint."""
        return 8 * nbytes / max(self.parameters, 1)

    def to_json(self) -> bytes:
        """report.json. Numbers have six digits; what is infinite is null."""
        head = {"format": "deepmnn-report", "format_version": FORMAT_VERSION}
        fields = {**head, **asdict(self), "bits_per_weight": self.bits_per_weight(self.nbytes)}
        return (json.dumps(_rounded(fields), allow_nan=False) + "\n").encode()


def layer_of(name: str) -> int | None:
    """The layer that a tensor, weight or value belongs to, by its name."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
