"""How the weights of a model are stored: in the checkpoint, and in the converted model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from deepmnn.conversion.report.facts import StoredFacts, WeightFacts
from deepmnn.conversion.report.rounding import Rounded, relative
from deepmnn.formats import F32_MATRIX, VECTOR, named
from deepmnn.graph.ir import Weight
from deepmnn.graph.tensors import tensors
from deepmnn.source.source import Source


def stored(
    weights: Iterable[Weight],
    source: Source | None = None,
    found: Mapping[str, Rounded] | None = None,
) -> tuple[StoredFacts, ...]:
    """Weights that are stored alike, before and after, those of the most bytes first.

    source: the checkpoint, where it is known.
    found: weight → what rounding did to it, where that was measured.
    """
    groups: dict[tuple[str, str], list[Weight]] = defaultdict(list)
    for weight in weights:
        groups[origin(weight, source), weight.format].append(weight)
    errors = found or {}
    made = [
        StoredFacts(
            before,
            format,
            len(group),
            sum(math.prod(weight.shape) for weight in group),
            sum(weight.nbytes for weight in group),
            relative([errors[weight.name] for weight in group if weight.name in errors]),
        )
        for (before, format), group in groups.items()
    ]
    return tuple(sorted(made, key=lambda each: (-each.nbytes, each.origin, each.format)))


def origin(weight: Weight, source: Source | None) -> str:
    """How the checkpoint stores what a weight is made of; "" where that is not known, or nothing is
    stored.
    """
    if source is None:
        return ""
    found = (source.stored_as(tensor.name) for tensor in tensors(weight.expr))
    return ", ".join(dict.fromkeys(filter(None, found)))


def as_stored(quant: str, nbytes: Mapping[str, int]) -> str:
    """A model by its formats: its recipe's name, unless codes are kept: "w4 and kept q4_k".

    nbytes: format → bytes that are stored in it.
    """
    kept = [name for name, _ in Counter(nbytes).most_common() if named(name).is_kept]
    if not kept:
        return quant
    words = f"kept {', '.join(kept)}"
    others = nbytes.keys() - {*kept, VECTOR.name, F32_MATRIX.name}
    return f"{quant} and {words}" if others else words


def by_format(weights: Iterable[Weight | WeightFacts | StoredFacts]) -> Counter[str]:
    """Format → bytes."""
    nbytes: Counter[str] = Counter()
    for weight in weights:
        nbytes[weight.format] += weight.nbytes
    return nbytes
