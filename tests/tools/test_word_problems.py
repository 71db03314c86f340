"""Worked word problems: every equation that is written down is true."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import word_problems

TERM = r"(?:\(-?\d+\)|-?\d+(?:\.\d+)?(?:/\d+)?)"
SUM = re.compile(
    rf"(?<![\d/)(+*×x%] )(?<![\d.(/])({TERM}(?: [-+*/×÷] {TERM})+) = (-?\d+(?:\.\d+)?(?:/\d+)?)"
)


def equations(text: str) -> Iterator[tuple[str, str]]:
    yield from SUM.findall(re.sub(r"(?<=\d),(?=\d{3})", "", text))


def value(expression: str) -> Fraction:
    exact = re.sub(
        r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", expression.translate({215: "*", 247: "/"})
    )
    result: Fraction = eval(exact, {"Fraction": Fraction})
    return result


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("kind", word_problems.KINDS, ids=lambda kind: kind.__name__)
def test_equations_hold(kind: object, chinese: bool) -> None:
    seen = 0
    for seed in range(200):
        worked = kind(random.Random(seed), chinese)  # type: ignore[operator]
        for left, right in equations(worked.reasoning):
            assert abs(value(left) - Fraction(right)) < Fraction(6, 1000), (left, right)
            seen += 1
    assert seen >= 100
