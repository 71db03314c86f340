"""One line of a check: what was measured, what its definition says, and what to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "wrong", "skipped"]


@dataclass(frozen=True)
class Line:
    """The outcome of one check.

    Attributes:
        name: what is checked: "RoPE pairs".
        verdict: "ok"; "wrong"; "skipped", and `found` says why.
        found: the number that was measured, in words.
        expected: what the definition says.
        advice: what to do, where it is wrong.
        figure: the number itself; None where there is none.
    """

    name: str
    verdict: Verdict
    found: str
    expected: str = ""
    advice: str = ""
    figure: float | None = None


def judged(
    name: str, right: bool, found: str, expected: str, advice: str = "", figure: float | None = None
) -> Line:
    """ok or wrong; the advice is kept where it is wrong, and a figure that is a number."""
    figure = figure if figure is not None and math.isfinite(figure) else None
    return (
        Line(name, "ok", found, expected, "", figure)
        if right
        else Line(name, "wrong", found, expected, advice, figure)
    )


def skipped(name: str, why: str) -> Line:
    """Not checked, and why."""
    return Line(name, "skipped", why)
