"""A draft part: a second graph that guesses the token after the next from what the main part gave.

    main   ids, positions          → logits, state    its "hidden", say: [rows, width]
    draft  ids, positions, state   → logits, state    "state": what the next guess begins with

A token of the draft part is a pair: what the main part gave for token i, and the id of token i + 1;
at position i, with a row of its own in each of its cache entries. Its logits are those of token
i + 2. The parts share weights, by name, and blocks of the KV cache, where each has its own entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepmnn.errors import GraphError
from deepmnn.graph.ir import ROWS, Graph, Weight
from deepmnn.graph.levels import OnPass, PassResult, optimize
from deepmnn.graph.passes.share_weights import are_equal
from deepmnn.graph.tensors import tensor_shapes
from deepmnn.graph.weights import TensorSource

STATE = "state"
"""What the draft part's output is called that its next guess begins with."""

_COPIED_ROLES = ("embedding", "lm_head")
"""Of weights that checkpoints have once for each part, with the same numbers."""


@dataclass(frozen=True)
class Parts:
    """A model: its main part, and a draft part where it has one."""

    main: Graph
    draft: Graph | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that is read, with its shape."""
        return tensor_shapes(self.main) | (tensor_shapes(self.draft) if self.draft else {})

    @property
    def weights(self) -> dict[str, Weight]:
        """Of both, by name."""
        return self.main.weights | (self.draft.weights if self.draft else {})

    def check(self) -> None:
        """Raises GraphError unless the main part reads nothing but ids and positions, the draft
        part what the main part gives, and they agree on what they share.
        """
        if any(self.main.values[name].dtype != "i32" for name in self.main.inputs):
            raise GraphError(f"the model reads {', '.join(self.main.inputs)}", "ids and positions")
        if self.draft is not None:
            _check_ends(self.main, self.draft)
            _check_shared(self.main, self.draft)


def state_of(draft: Graph) -> str:
    """Which of the main part's outputs a draft part reads. Raises GraphError for a main part."""
    for name in draft.inputs:
        if draft.values[name].dtype == "f32":
            return name
    raise GraphError(f"the draft part reads {', '.join(draft.inputs)}", "what the main part gives")


def optimize_parts(
    naive: Parts,
    level: int,
    source: TensorSource | None = None,
    choose_formats: Callable[[Graph], object] | None = None,
    on_pass: OnPass | None = None,
) -> tuple[Parts, list[PassResult]]:
    """Both parts by the same passes and formats; weights that both have are one. Arguments as of
    `optimize`; what passes did, here and for on_pass, is what they did to the main part.
    """
    main, passes = optimize(
        naive.main, level, source, choose_formats=choose_formats, on_pass=on_pass
    )
    if naive.draft is None:
        return Parts(main), passes

    def choose(draft: Graph) -> None:
        if choose_formats is not None:
            choose_formats(draft)
        _adopt(draft, main, source if level else None)

    draft, _ = optimize(naive.draft, level, source, choose_formats=choose)
    made = Parts(main, draft)
    made.check()
    return made, passes


def _adopt(draft: Graph, main: Graph, source: TensorSource | None) -> None:
    """Weights of the draft part that the main part has, too, become those, with their formats: of
    the same expression, and with a source those that are copies.

    Before fusion, which would make parts of them.
    """
    known = {weight.expr: weight for weight in main.weights.values()}
    twins: dict[str, Weight] = {}
    for weight in draft.weights.values():
        twin = known.get(weight.expr)
        if twin is None and source is not None and weight.role in _COPIED_ROLES:
            alike = (w for w in main.weights.values() if w.role in _COPIED_ROLES)
            twin = next((w for w in alike if are_equal(w, weight, source)), None)
        if twin is not None:
            twins[weight.name] = twin
    for name, twin in twins.items():
        del draft.weights[name]
        draft.weights[twin.name] = twin
    for node in draft.nodes:
        node.weights = tuple(twins[name].name if name in twins else name for name in node.weights)


def _check_ends(main: Graph, draft: Graph) -> None:
    """What goes from one part to the other."""
    name = state_of(draft)
    given, width = main.values.get(name), draft.values[name].width
    if name not in main.outputs or given is None or (given.rows, given.width) != (ROWS, width):
        raise GraphError(f"the draft part reads {name!r}", f"what the model gives, [rows, {width}]")
    if set(draft.outputs) != {STATE, "logits"}:
        raise GraphError(f"the draft part gives {', '.join(draft.outputs)}", f"logits and {STATE}")
    for output, expected in ((STATE, width), ("logits", main.values["logits"].width)):
        value = draft.values[output]
        if (value.rows, value.width, value.dtype) != (ROWS, expected, "f32"):
            raise GraphError(f"the draft part gives {value}", f"f32 [rows, {expected}]")


def _check_shared(main: Graph, draft: Graph) -> None:
    """Weights of one name are one, cache entries are not."""
    if both := main.caches.keys() & draft.caches.keys():
        raise GraphError(f"both parts write cache {min(both)!r}", "entries of their own")
    for name in sorted(main.weights.keys() & draft.weights.keys()):
        if main.weights[name] != draft.weights[name]:
            raise GraphError(f"weight {name!r} is another one in the draft part", "the same")
