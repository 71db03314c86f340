"""What rounding did to the weights: as the conversion recorded it, or measured again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from deepmnn.artifact.reader import Artifact
from deepmnn.artifact.restored import RestoredSource
from deepmnn.conversion.report.facts import WeightFacts
from deepmnn.conversion.report.rounding import Rounding, relative
from deepmnn.conversion.report.stored import origin
from deepmnn.errors import RequestError
from deepmnn.formats import named
from deepmnn.graph.tensors import tensors
from deepmnn.graph.weights import Expr
from deepmnn.source.source import Source

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what)."""


@dataclass(frozen=True)
class Together:
    """The error of several matrices: root mean square of theirs, each by how many numbers it has.

    Attributes:
        name: what they are.
        count: how many were measured.
        error: as a share of their numbers.
    """

    name: str
    count: int
    error: float


def measure(
    artifact: Artifact, restored: RestoredSource, reference: Source, progress: Progress | None
) -> tuple[WeightFacts, ...]:
    """The stored matrices of a converted model against the numbers of a checkpoint, on some rows of
    each.

    restored: of the artifact, which says what its weights are made of. reference: the checkpoint.

    Raises RequestError when the reference has other tensors, and what reading it raises.
    """
    rounding, facts, done = Rounding(), [], 0
    total = sum(weight.nbytes for weight, _ in restored.origins)
    for weight, expr in restored.origins:
        _check(expr, reference)
        if named(weight.format).is_matrix:
            rounding.add(weight, expr.read(reference), artifact.tensor(weight.name))
        found = rounding.found.get(weight.name)
        error = None if found is None else relative([found])
        stored = origin(replace(weight, expr=expr), reference)
        facts.append(WeightFacts.of(weight, stored, error))
        done += weight.nbytes
        if progress is not None:
            progress(done, total, weight.name)
    return tuple(facts)


def _check(expr: Expr, reference: Source) -> None:
    for tensor in tensors(expr):
        found = reference.shape(tensor.name) if tensor.name in reference else None
        if found != tensor.shape:
            raise RequestError(
                f"the reference has {'no tensor' if found is None else 'the tensor'} "
                f"{tensor.name!r:.200}{'' if found is None else f' with shape {list(found)}'}",
                f"one with shape {list(tensor.shape)}",
                "Name the checkpoint that the model was converted from.",
            )


def by_role(weights: Iterable[WeightFacts]) -> list[Together]:
    """The errors of each role, the largest first."""
    groups: dict[str, list[WeightFacts]] = defaultdict(list)
    for weight in weights:
        groups[weight.role].append(weight)
    found = [together(role, group) for role, group in groups.items()]
    return sorted((one for one in found if one is not None), key=lambda one: -one.error)


def by_layer(weights: Sequence[WeightFacts], role: str) -> list[tuple[int, float]]:
    """(layer, error) of the weights of a role."""
    groups: dict[int, list[WeightFacts]] = defaultdict(list)
    for weight in weights:
        if weight.role == role and weight.layer is not None:
            groups[weight.layer].append(weight)
    found = ((layer, together(role, group)) for layer, group in sorted(groups.items()))
    return [(layer, one.error) for layer, one in found if one is not None]


def together(name: str, weights: Iterable[WeightFacts]) -> Together | None:
    """The error of some weights; None where none of theirs is known."""
    pairs = [(w.error, math.prod(w.shape)) for w in weights if w.error is not None]
    if not pairs:
        return None
    numbers = sum(size for _, size in pairs) or 1
    return Together(
        name, len(pairs), math.sqrt(sum(error**2 * size for error, size in pairs) / numbers)
    )
