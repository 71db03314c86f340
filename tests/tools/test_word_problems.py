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

EXPRESSION = r"[-+*/×÷%().\d ]+"


def equations(text: str) -> Iterator[tuple[str, str]]:
    """Both sides of every equation between numbers."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    for left, right in re.findall(rf"({EXPRESSION})= (?=({EXPRESSION}))", plain):
        sides = left.strip(" ."), right.rstrip(" .(")
        if all(re.match(r"[-(\d]", s) and s.count("(") == s.count(")") for s in sides):
            yield sides


def value(expression: str) -> Fraction:
    plain = expression.replace("×", "*").replace("÷", "/").replace("%", "/100")
    exact = re.sub(r"\d+(?:\.\d+)?", r"Fraction('\g<0>')", plain)
    result: Fraction = eval(exact, {"Fraction": Fraction})
    return result


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("kind", word_problems.KINDS, ids=lambda kind: kind.__name__)
def test_equations_hold(kind: object, chinese: bool) -> None:
    seen = 0
    for seed in range(200):
        worked = kind(random.Random(seed), chinese)  # type: ignore[operator]
        for left, right in equations(worked.reasoning):
            assert abs(value(left) - value(right)) < Fraction(6, 1000), (left, right)
            seen += 1
    assert seen >= 100
