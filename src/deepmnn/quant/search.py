"""Which format each weight gets, where bytes or the loss are limited.

Every weight has choices, each with bytes and a cost: what rounding it so adds to the loss, as far
as anybody knows. Costs of different weights add up. Of a weight's choices only those on the lower
convex hull of (bytes, cost) matter; from the cheapest bytes on, steps to the next choice are taken
by the cost that they save for each byte. That is the Lagrangian of the problem: after every step
the choices are the best there are for their bytes, and between two steps the best could be better
by less than the next step saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from deepmnn.errors import RequestError


@dataclass(frozen=True)
class Choice:
    """A format for one weight: its bytes, and what it adds to the loss."""

    format: str
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Assignment:
    """A format for every weight: their bytes, and what they add to the loss together."""

    formats: dict[str, str]
    nbytes: int
    cost: float


def assignments(choices: Mapping[str, Sequence[Choice]]) -> Iterator[Assignment]:
    """The best there are for their bytes, from the fewest bytes to the least cost.

    Raises RequestError for a weight without choices, or a cost that is no number.
    """
    hulls = {name: _hull(name, found) for name, found in choices.items()}
    formats = {name: hull[0].format for name, hull in hulls.items()}
    nbytes = sum(hull[0].nbytes for hull in hulls.values())
    cost = sum(hull[0].cost for hull in hulls.values())
    yield Assignment(dict(formats), nbytes, cost)
    steps = [(name, low, high) for name, hull in hulls.items() for low, high in pairwise(hull)]
    for name, low, high in sorted(steps, key=lambda step: (_saved(*step[1:]), step[0])):
        formats[name] = high.format
        nbytes += high.nbytes - low.nbytes
        cost += high.cost - low.cost
        yield Assignment(dict(formats), nbytes, cost)


def within_bytes(choices: Mapping[str, Sequence[Choice]], max_nbytes: int) -> Assignment:
    """The best of `assignments` in so many bytes. Raises RequestError when none is that small."""
    best: Assignment | None = None
    for found in assignments(choices):
        if found.nbytes > max_nbytes:
            if best is None:
                raise RequestError(
                    f"at most {max_nbytes} bytes of weights",
                    f"at least {found.nbytes}, the fewest that the formats take",
                )
            break
        best = found
    assert best is not None  # there is always a first
    return best


def within_cost(choices: Mapping[str, Sequence[Choice]], most: float) -> Assignment:
    """The smallest of `assignments` that adds at most so much to the loss.

    Raises RequestError when even the best adds more.
    """
    found: Assignment | None = None
    for found in assignments(choices):
        if found.cost <= most:
            return found
    least = "nothing" if found is None else f"{found.cost:.4g}"
    raise RequestError(
        f"a loss of at most {most:g} by rounding", f"at least {least}, with the widest formats"
    )


def _saved(low: Choice, high: Choice) -> float:
    """Change of cost for each byte of a step: the most negative is the best."""
    return (high.cost - low.cost) / (high.nbytes - low.nbytes)


def _hull(name: str, choices: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, from the fewest bytes to the least cost."""
    if not choices:
        raise RequestError(f"no format for {name!r}", "at least one")
    if not all(abs(choice.cost) < float("inf") for choice in choices):
        raise RequestError(f"a cost of {name!r} that is no number", "finite numbers")
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.nbytes, choice.cost)):
        if hull and choice.cost >= hull[-1].cost:
            continue  # more bytes for nothing
        while len(hull) > 1 and _saved(hull[-2], hull[-1]) >= _saved(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull
