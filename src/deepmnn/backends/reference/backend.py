"""Runs a graph of any optimisation level with numpy, one node after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deepmnn.backends.base import (
    F32,
    Batch,
    Cache,
    Draw,
    check_batch,
    no_draft,
    sample_in_turn,
)
from deepmnn.backends.reference.cache import PagedCache
from deepmnn.backends.reference.ops import OPS, Array, Call
from deepmnn.errors import GraphError, RequestError, argument
from deepmnn.graph.draft import STATE, state_of
from deepmnn.graph.ir import Graph, Node

MLA_FORMS = ("expanded", "absorbed")


class Evaluator:
    """Computes every value of a graph, a whole model or a stage of one (graph/stages.py).

    Args:
        graph: what is computed.
        read_weight: weight name → float32 array of that weight's shape; called once for each.
        mla_form: which form `mla_attention` takes, "expanded" or "absorbed". Both give the same
            result but for rounding.
    """

    def __init__(
        self, graph: Graph, read_weight: Callable[[str], F32], mla_form: str = "expanded"
    ) -> None:
        if mla_form not in MLA_FORMS:
            raise RequestError(
                argument("mla_form", f" is {mla_form!r:.80}"), f"one of {', '.join(MLA_FORMS)}"
            )
        self.graph, self.mla_form = graph, mla_form
        self._read_weight = read_weight
        self._weights: dict[str, F32] = {}

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> PagedCache:
        """Allocates an empty cache; see `Backend.new_cache`. Raises RequestError."""
        return PagedCache(self.graph.caches, blocks, block_size, dtype, recent_blocks)

    def values(
        self, cache: PagedCache, batch: Batch, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Every value by name, each [n, width]; the batch has been checked.

        inputs: what the graph reads besides ids and positions: the values of earlier stages.
        """
        given = {"ids": batch.ids, "positions": batch.positions, **inputs}
        values: dict[str, Array] = {name: given[name] for name in self.graph.inputs}
        for node in self.graph.nodes:
            outputs = self._call(node, values, cache, batch)
            values.update(zip(node.outputs, outputs, strict=True))
        return values

    def _call(
        self, node: Node, values: dict[str, Array], cache: PagedCache, batch: Batch
    ) -> tuple[Array, ...]:
        if node.op not in OPS:
            raise GraphError(f"node {node.name!r} has the unknown op {node.op!r}")
        widths = tuple(self.graph.values[output].width for output in node.outputs)
        inputs = tuple(values[name] for name in node.inputs)
        weights = tuple(self._weight(name) for name in node.weights)
        result = OPS[node.op](
            Call(inputs, weights, node.attrs, widths, cache, batch, self.mla_form)
        )
        outputs = result if isinstance(result, tuple) else (result,)
        for output, width in zip(outputs, widths, strict=True):
            if output.shape[1] != width:
                raise GraphError(f"node {node.name!r} made rows of {output.shape[1]}", f"{width}")
        return outputs

    def _weight(self, name: str) -> F32:
        if name not in self._weights:
            array = np.asarray(self._read_weight(name), np.float32)
            shape = self.graph.weights[name].shape
            if array.shape != shape:
                raise GraphError(f"weight {name!r} has shape {array.shape}", f"{shape}")
            self._weights[name] = array
        return self._weights[name]


class ReferenceBackend(Evaluator):
    """The oracle; see backends/base.py for the protocol. Arguments as of `Evaluator`; the graph
    gives logits. draft: the graph of its draft part, which reads weights in the same way.
    """

    max_sequences: int | None = None

    def __init__(
        self,
        graph: Graph,
        read_weight: Callable[[str], F32],
        mla_form: str = "expanded",
        draft: Graph | None = None,
    ) -> None:
        super().__init__(graph, read_weight, mla_form)
        if "logits" not in graph.outputs:
            raise GraphError(f"graph {graph.name!r} gives {graph.outputs}", "logits among them")
        self.vocab_size = graph.values["logits"].width
        self.outputs = tuple(graph.outputs)
        self.caches = graph.caches | (draft.caches if draft else {})
        self.draft_state = state_of(draft) if draft else None
        self._draft = Evaluator(draft, read_weight, mla_form) if draft else None

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> PagedCache:
        """As of `Evaluator`, for both parts."""
        return PagedCache(self.caches, blocks, block_size, dtype, recent_blocks)

    def step(self, cache: Cache, batch: Batch) -> F32:
        """Runs one step, appends to the cache, returns logits [rows, vocab_size].

        Raises:
            RequestError: the batch does not fit the model or the cache.
        """
        return self.trace(cache, batch)["logits"]

    def run(self, cache: Cache, batch: Batch) -> dict[str, F32]:
        """Like `step`, but returns every output by name, each [rows, width]."""
        values = self.trace(cache, batch)
        return {name: values[name] for name in self.outputs}

    def draft(self, cache: Cache, batch: Batch, state: F32) -> tuple[F32, F32]:
        """Runs the draft part: logits [rows, vocab_size] and the next state [rows, width]."""
        if self._draft is None or self.draft_state is None:
            raise no_draft()
        checked = self._checked(cache, batch)
        shape = len(batch.ids), self._draft.graph.values[self.draft_state].width
        if state.shape != shape:
            raise RequestError(f"a state of {list(state.shape)}", f"{list(shape)}")
        values = self._draft.values(checked, batch, {self.draft_state: state})
        return values["logits"], values[STATE]

    def sample(self, draws: list[Draw]) -> list[int]:
        """The token ids that are drawn. Raises RequestError when logits are no numbers."""
        return sample_in_turn(draws)

    def trace(self, cache: Cache, batch: Batch) -> dict[str, Array]:
        """Like `step`, but returns every value of the graph by name, each [n, width]."""
        return self.values(self._checked(cache, batch), batch, {})

    def _checked(self, cache: Cache, batch: Batch) -> PagedCache:
        """The cache, when the batch fits it and the model."""
        if not isinstance(cache, PagedCache):
            raise RequestError(f"cache is a {type(cache).__name__}", "one made by new_cache")
        check_batch(batch, cache, self.vocab_size)
        return cache
