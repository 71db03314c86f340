"""An axis of a chart: where numbers lie on it, and which of them are named."""

from __future__ import annotations

import math
from dataclasses import dataclass

_DIGITS = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
)


@dataclass(frozen=True)
class Scale:
    """Numbers → places on an axis.

    Attributes:
        low, high: the ends of the axis.
        begin, end: where they are, in pixels.
        is_log: equal ratios are equally far apart; both ends are above 0.
    """

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """A number's place; one beyond an end is put there."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        return (_log_ticks if self.is_log else _ticks)(self.low, self.high)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [step * n for n in range(math.ceil(low / step), int(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; in a narrow range, other round numbers too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in _DIGITS:
        found = [m * 10.0**n for n in powers for m in digits if low <= m * 10.0**n <= high]
        if len(found) > 2:
            break
    return found[:: max(1, -(-len(found) // 6))]
