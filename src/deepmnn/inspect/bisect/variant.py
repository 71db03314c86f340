"""A model with some of what makes it fast or small taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deepmnn import models
from deepmnn.conversion.naive import untied
from deepmnn.errors import RequestError
from deepmnn.formats import F32, F32_MATRIX, U8, named
from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.levels import PassResult, optimize
from deepmnn.graph.signatures import weights_read
from deepmnn.graph.stages import LAYER
from deepmnn.graph.tensors import tensors
from deepmnn.inspect.bisect.setting import Place, Setting
from deepmnn.inspect.compare.compare import layers_of
from deepmnn.inspect.sides.graphs import staged_side
from deepmnn.inspect.sides.staged import Runner, StagedSide
from deepmnn.inspect.sides.subject import Subject
from deepmnn.quant.store import store, stored_values


class Variants:
    """Builds variants of a model.

    Args:
        model: what is wrong.
        reference: whose numbers can stand in for the model's.

    Raises RequestError for a model without a graph of ours, or numbers that cannot be read.
    """

    def __init__(self, model: Subject, reference: Subject) -> None:
        if not isinstance(model.side, StagedSide) or model.level is None or not model.tensors:
            raise RequestError(
                f"{model.side.label} has no passes and formats to switch off",
                "a model on our engine, or on numpy",
            )
        if reference.tensors is None:
            raise RequestError(
                f"the numbers of {reference.name} cannot be read",
                "a checkpoint or a converted model",
            )
        self._model, self._own, self._exact = model, model.tensors, reference.tensors
        self._level, self._stored = model.level, model.side.graph.weights
        self._naive = models.build(untied(model.tensors))
        self.graph, self.passes = self._optimized(frozenset())
        self.layers = max(layers_of(self._naive).values())

    def side(self, setting: Setting) -> StagedSide:
        """The model under a setting, layer by layer."""
        graph, _ = self._optimized(setting.without)
        first = weights_read(graph, "looked_up")
        sources = {}
        for weight in graph.weights.values():
            exact = self._place(weight, first) in setting.exact
            floats = setting.floats and _is_coded(weight)
            if exact or floats or not self._is_stored(weight):
                sources[weight.name] = self._exact if exact else self._own
                if named(weight.format).is_matrix:
                    weight.format = F32_MATRIX.name

        def stored(weight: Weight) -> U8:
            if weight.name in sources:
                return store(weight, weight.expr.read(sources[weight.name]))
            assert self._model.stored is not None
            return self._model.stored(self._stored[weight.name])

        def numbers(weight: Weight) -> F32:
            if weight.name in sources:
                return weight.expr.read(sources[weight.name])
            return stored_values(weight, stored(weight))

        options = replace(
            self._model.options,
            kv_dtype=setting.kv_dtype,
            isa=setting.isa,
            threads=setting.threads,
            mla_form=setting.mla_form,
        )
        side = staged_side(graph, stored, numbers, options, "")
        if not setting.by_numpy:
            return side
        numpy = staged_side(
            graph, stored, numbers, replace(options, backend="reference", isa=None), ""
        )

        def opened(part: Graph, tokens: int, directory: Path) -> Runner:
            chosen = numpy if self._layer(part.nodes[-1].name) in setting.by_numpy else side
            return chosen.open_stage(part, tokens, directory)

        return StagedSide("", graph, opened)

    def places(self) -> dict[Place, str]:
        """Layer and role → how its weights are stored, in the model's order; floats only where
        their numbers are not the reference's.
        """
        first = weights_read(self.graph, "looked_up")
        found: dict[Place, dict[str, None]] = {}
        for name in dict.fromkeys(name for node in self.graph.nodes for name in node.weights):
            weight = self.graph.weights[name]
            if not _is_coded(weight):
                ours, theirs = (weight.expr.read(each) for each in (self._own, self._exact))
                if np.allclose(ours, theirs, rtol=1e-6, atol=0):
                    continue
            formats = found.setdefault(self._place(weight, first), {})
            formats[weight.format] = None
        return {place: "+".join(formats) for place, formats in sorted(found.items())}

    def _optimized(self, without: frozenset[str]) -> tuple[Graph, list[PassResult]]:
        disabled = self._model.options.disabled | without
        return optimize(
            self._naive, self._level, disabled=disabled, choose_formats=self._choose_formats
        )

    def _choose_formats(self, graph: Graph) -> None:
        """Those in which the model stores the tensors, so that the same weights are fused."""
        for weight in graph.weights.values():
            if not named(weight.format).is_matrix:
                continue
            formats = {
                format
                for tensor in tensors(weight.expr)
                for format in self._model.formats(tensor.name)
                if named(format).is_matrix
            }
            if len(formats) == 1:
                weight.format = formats.pop()

    def _is_stored(self, weight: Weight) -> bool:
        """Whether the model has these very bytes."""
        ours = self._stored.get(weight.name)
        return ours is not None and (ours.format, ours.shape) == (weight.format, weight.shape)

    def _place(self, weight: Weight, looked_up: set[str]) -> Place:
        before = weight.name in looked_up
        return (-1 if before else self._layer(weight.name)), "embedding" if before else weight.role

    def _layer(self, name: str) -> int:
        """The layer of a node or weight that is not before the first."""
        numbered = LAYER.match(name)
        return int(numbered[1]) if numbered else self.layers


def _is_coded(weight: Weight) -> bool:
    return bool(named(weight.format).levels)
