"""Which part of the Python side the time goes to: nested spans, each without those inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Mark:
    """A span of time, in nanoseconds of `perf_counter_ns`, and what was done in it."""

    name: str
    begin: int
    end: int


class Timeline:
    """Adds up the time of parts by name. One thread's."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.marks: list[Mark] | None = None
        """Every span, where somebody has put a list here."""
        self._inside = 0

    def run(self, part: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """work's result; its time, without that of parts inside, is the part's."""
        outer, self._inside = self._inside, 0
        begin = perf_counter_ns()
        try:
            return work(*args, **kwargs)
        finally:
            end = perf_counter_ns()
            self.seconds[part] += (end - begin - self._inside) / 1e9  # type: ignore[assignment]
            self.calls[part] += 1
            self._inside = outer + end - begin
            if self.marks is not None:
                self.marks.append(Mark(part, begin, end))

    def exclude(self, seconds: float) -> None:
        """Some of the running part's time is counted elsewhere."""
        self._inside += round(seconds * 1e9)

    def clear(self) -> None:
        """Begins anew."""
        self.seconds.clear()
        self.calls.clear()
