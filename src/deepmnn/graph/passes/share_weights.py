"""Equal weights become one.

    embedding ─ table A            embedding ─┐
    lm_head ─── table A'     →     lm_head ───┴─ table A

Weights made of the same expression are always equal. With the numbers at hand (a TensorSource),
weights of equal content are found too: those of equal shape and equal sample are hashed. A matrix
whose sample is one byte throughout is filler (zeros, a file with holes) and no copy of another.
The one that stays takes the role that wants the better precision. Vectors and packed matrices are
never mixed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from deepmnn.graph.ir import Graph, Weight
from deepmnn.graph.weights import Tensor, TensorSource, digest_of

ROLES_BY_PRECISION = ("vector", "router", "lm_head", "embedding", "latent", "linear", "expert")
"""Roles, the ones that quantisation hurts most first."""


@runtime_checkable
class SampledSource(TensorSource, Protocol):
    """A source that can compare tensors without handing out their numbers."""

    def sample(self, name: str) -> bytes:
        """Some bytes of the tensor as stored, the same places in tensors of one shape."""
        ...

    def digest(self, name: str) -> bytes:
        """The same for two tensors of one shape only if their numbers are equal."""
        ...


def run(graph: Graph, source: TensorSource | None = None) -> int:
    """Returns the number of weights that went away.

    Raises CheckpointError when `source` lacks a tensor or its shape differs.
    """
    return _merge(graph, {}) if source is None else _merge(graph, _contents(graph, source))


def are_equal(a: Weight, b: Weight, source: TensorSource) -> bool:
    """Whether two weights are stored alike and have the same numbers in a source."""
    if _storage(a) != _storage(b):
        return False
    return a.expr == b.expr or (
        _sample(a, source) == _sample(b, source) and _digest(a, source) == _digest(b, source)
    )


def _merge(graph: Graph, contents: dict[str, bytes]) -> int:
    """Merges weights of equal expression, or of equal content hash where there is one."""
    groups: dict[Hashable, list[Weight]] = {}
    for weight in graph.weights.values():
        content = contents.get(weight.name)
        groups.setdefault((_storage(weight), content or weight.expr), []).append(weight)
    renames: dict[str, str] = {}
    for first, *others in groups.values():
        for other in others:
            if ROLES_BY_PRECISION.index(other.role) < ROLES_BY_PRECISION.index(first.role):
                first.role = other.role
            renames[other.name] = first.name
            del graph.weights[other.name]
    if renames:
        for node in graph.nodes:
            node.weights = tuple(renames.get(name, name) for name in node.weights)
    return len(renames)


def _contents(graph: Graph, source: TensorSource) -> dict[str, bytes]:
    """Weight name → hash of its numbers, for those that could equal another."""
    groups: dict[Hashable, list[Weight]] = {}
    for weight in graph.weights.values():
        groups.setdefault((_storage(weight), _sample(weight, source)), []).append(weight)
    return {
        weight.name: _digest(weight, source)
        for group in groups.values()
        if len({weight.expr for weight in group}) > 1
        for weight in group
    }


def _sample(weight: Weight, source: TensorSource) -> Hashable:
    """What tells most unequal weights apart cheaply.

    Without samples an expert counts as one of a kind: experts are most of a checkpoint, and reading
    them all to compare them would cost as much as converting them.
    """
    if isinstance(source, SampledSource) and isinstance(weight.expr, Tensor):
        found = source.sample(weight.expr.name)
        is_filler = len(weight.shape) > 1 and len({*found}) < 2
        return weight.name if is_filler else found
    return weight.name if weight.role == "expert" else None


def _digest(weight: Weight, source: TensorSource) -> bytes:
    if isinstance(source, SampledSource) and isinstance(weight.expr, Tensor):
        return source.digest(weight.expr.name)
    return digest_of(weight.expr.read(source))


def _storage(weight: Weight) -> tuple[tuple[int, ...], str]:
    return weight.shape, weight.format
