"""The search for formats, against every combination there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from deepmnn.errors import RequestError
from deepmnn.quant.search import Choice, assignments, within_bytes, within_cost

Choices = dict[str, list[Choice]]


def some_choices(seed: int, weights: int = 5) -> Choices:
    """Of odd sizes; costs fall about 4 times with each bit, and now and then do not."""
    rng = np.random.default_rng(seed)
    found: Choices = {}
    for index in range(weights):
        size, sensitivity = int(rng.integers(1, 100)), 10 ** rng.uniform(-3, 1)
        found[f"w{index}"] = [
            Choice(f"w{bits}", size * bits, sensitivity * 4.0**-bits * rng.uniform(0.3, 3))
            for bits in (3, 4, 5, 6, 8)
        ]
    return found


def everything(choices: Choices) -> list[tuple[int, float]]:
    """(bytes, cost) of every combination."""
    return [
        (sum(c.nbytes for c in combination), sum(c.cost for c in combination))
        for combination in itertools.product(*choices.values())
    ]


@pytest.mark.parametrize("seed", range(10))
def test_each_assignment_is_the_best_of_its_bytes(seed: int) -> None:
    choices = some_choices(seed)
    combinations = everything(choices)
    found = list(assignments(choices))
    assert len(found) > len(choices)
    for assignment in found:
        best = min(cost for nbytes, cost in combinations if nbytes <= assignment.nbytes)
        assert math.isclose(assignment.cost, best, rel_tol=1e-9)
        picked = [
            next(c for c in choices[name] if c.format == format)
            for name, format in assignment.formats.items()
        ]
        assert sum(c.nbytes for c in picked) == assignment.nbytes
        assert math.isclose(sum(c.cost for c in picked), assignment.cost, rel_tol=1e-9)
    assert [a.nbytes for a in found] == sorted(a.nbytes for a in found)
    assert [a.cost for a in found] == sorted((a.cost for a in found), reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_of_bytes(seed: int) -> None:
    """Never above the budget; worse than the best combination by less than one step saves."""
    choices = some_choices(seed)
    combinations, found = everything(choices), list(assignments(choices))
    largest_step = max(a.cost - b.cost for a, b in itertools.pairwise(found))
    for budget in np.linspace(found[0].nbytes, found[-1].nbytes + 10, 40).astype(int):
        assignment = within_bytes(choices, int(budget))
        assert assignment.nbytes <= budget
        best = min(cost for nbytes, cost in combinations if nbytes <= budget)
        assert best <= assignment.cost * (1 + 1e-9)
        assert assignment.cost < best + largest_step


@pytest.mark.parametrize("seed", range(5))
def test_budgets_of_cost(seed: int) -> None:
    choices = some_choices(seed)
    found = list(assignments(choices))
    for before, after in itertools.pairwise(found):
        assert within_cost(choices, after.cost * (1 + 1e-9)).nbytes == after.nbytes
        assert within_cost(choices, before.cost * (1 + 1e-9)).nbytes == before.nbytes


def test_what_cannot_be_met() -> None:
    choices = some_choices(0)
    smallest, *_, widest = assignments(choices)
    with pytest.raises(RequestError, match=f"expected at least {smallest.nbytes}"):
        within_bytes(choices, smallest.nbytes - 1)
    with pytest.raises(RequestError, match="with the widest formats"):
        within_cost(choices, widest.cost * 0.99)
    with pytest.raises(RequestError, match="no format for 'w'"):
        within_bytes({"w": []}, 100)
    with pytest.raises(RequestError, match="no number"):
        within_bytes({"w": [Choice("w4", 4, float("nan"))]}, 100)
