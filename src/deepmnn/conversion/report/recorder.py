"""Collects the facts of a conversion while it is done, and writes the report's two files."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path

from deepmnn import __version__
from deepmnn.conversion.plan import Plan
from deepmnn.conversion.report.facts import (
    ActivationFacts,
    CalibrationFacts,
    ExpertFacts,
    Facts,
    Judged,
    LayerFacts,
    Search,
    StoredFacts,
    WeightFacts,
    layer_of,
)
from deepmnn.conversion.report.observed import Observed
from deepmnn.conversion.report.page import page
from deepmnn.conversion.report.rounding import Rounding, relative
from deepmnn.conversion.report.stored import origin, stored
from deepmnn.formats import F32, F32_MATRIX, U8, named
from deepmnn.graph.ir import Weight
from deepmnn.source.random import RandomSource
from deepmnn.source.source import Source

HTML = "report.html"
_KEPT = 4
"""Matrices of a kept format that are compared with the source's numbers: they are its own codes."""
JSON = "report.json"


class Recorder:
    """Of one conversion.

    Attributes:
        source: the checkpoint as it is, which stored weights are compared with.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._rounding = Rounding()
        self._kept: Counter[str] = Counter()
        self._calibration: CalibrationFacts | None = None
        self._activations: tuple[ActivationFacts, ...] = ()
        self._experts: tuple[ExpertFacts, ...] = ()
        self._output_errors: dict[int, float] = {}
        self._judged: Judged | None = None
        self._search: Search | None = None
        self._seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def calibrated(self, facts: CalibrationFacts, observed: Observed) -> None:
        """The calibration is done."""
        self._calibration = facts
        self._activations, self._experts = observed.activations(), observed.experts()
        self._output_errors = observed.output_errors()
        self.took("calibrating")

    def judged(self, found: Judged) -> None:
        """The rounded model was compared with the checkpoint."""
        self._judged = found

    def searched(self, search: Search) -> None:
        """Formats were chosen under a budget."""
        self._search = search

    def stored(self, weight: Weight, numbers: F32 | None, data: U8) -> None:
        """A weight is stored as these bytes; numbers: what the source has, if it is at hand."""
        format = named(weight.format)
        if isinstance(self.source, RandomSource) or not format.is_matrix or format == F32_MATRIX:
            return
        if format.is_kept:
            self._kept[format.name] += 1
            if self._kept[format.name] > _KEPT:
                return
        exact = weight.expr.read(self.source) if numbers is None else numbers
        self._rounding.add(weight, exact, data)

    def kinds(self, plan: Plan) -> tuple[StoredFacts, ...]:
        """How the weights of a plan are stored, with the errors that were measured so far."""
        return stored(plan.weights, plan.source, self._rounding.found)

    def took(self, what: str) -> None:
        """What was done since the last call, or since the beginning."""
        now = time.monotonic()
        self._seconds[what] = now - self._last
        self._last = now

    def files(self, plan: Plan) -> dict[str, bytes]:
        """The report's files, when all weights of a plan are stored."""
        self.took("writing")
        facts = self.facts(plan)
        return {JSON: facts.to_json(), HTML: page(facts).encode()}

    def facts(self, plan: Plan) -> Facts:
        """All that is known of a plan and what became of it."""
        weights = tuple(self._weight(weight, plan.source) for weight in plan.weights)
        return Facts(
            deepmnn_version=__version__,
            source=Path(plan.source.paths[0]).name if plan.source.paths else "",
            model_type=plan.model_type,
            quant=plan.recipe.name,
            recipe=plan.recipe.to_json(),
            optimize_level=plan.optimize_level,
            parameters=plan.parameters,
            source_nbytes=plan.source.nbytes(),
            nbytes=plan.nbytes,
            nodes_level_0=plan.nodes_level_0,
            nodes=plan.nodes,
            dropped=plan.dropped,
            unused=plan.unused,
            passes=plan.passes,
            stored=self.kinds(plan),
            layers=self._layers(weights),
            weights=weights,
            levels=self._rounding.levels(),
            calibration=self._calibration,
            activations=self._activations,
            experts=self._experts,
            judged=self._judged,
            search=self._search,
            seconds=dict(self._seconds),
        )

    def _weight(self, weight: Weight, source: Source) -> WeightFacts:
        found = self._rounding.found.get(weight.name)
        error = None if found is None else relative([found])
        return WeightFacts.of(weight, origin(weight, source), error)

    def _layers(self, weights: tuple[WeightFacts, ...]) -> tuple[LayerFacts, ...]:
        by_layer: dict[int | None, list[WeightFacts]] = defaultdict(list)
        for weight in weights:
            by_layer[weight.layer].append(weight)
        order = sorted(by_layer, key=lambda layer: (layer is None, layer or 0))
        return tuple(self._layer(layer, by_layer[layer]) for layer in order)

    def _layer(self, layer: int | None, weights: list[WeightFacts]) -> LayerFacts:
        nbytes: dict[str, int] = defaultdict(int)
        for weight in weights:
            nbytes[weight.format] += weight.nbytes
        found = self._rounding.found
        errors = [found[weight.name] for weight in weights if weight.name in found]
        parts = self._search.parts if self._search else {}
        known = [kl for pattern, kl in parts.items() if layer_of(pattern) == layer]
        output = None if layer is None else self._output_errors.get(layer)
        return LayerFacts(
            layer, dict(nbytes), relative(errors), output, sum(known) if known else None
        )
