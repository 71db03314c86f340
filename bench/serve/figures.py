"""From times of arrival to figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Stream:
    """One answer. Seconds on one clock: when it was asked for, and when each token came.

    tokens: as counted by the server.
    """

    sent: float
    times: Sequence[float]
    tokens: int
    prompt_tokens: int

    def gaps(self, after: float = 0.0, until: float = float("inf")) -> list[float]:
        """Seconds between tokens, of those that lie in a window."""
        return [b - a for a, b in pairwise(self.times) if a >= after and b <= until]


@dataclass(frozen=True)
class Spread:
    """Seconds."""

    p50: float
    p99: float
    most: float
    deviation: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        found = sorted(values)
        deviation = statistics.pstdev(found)
        return Spread(percentile(found, 0.5), percentile(found, 0.99), found[-1], deviation)


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the values does not exceed."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


@dataclass(frozen=True)
class Figures:
    """What a load showed.

    Attributes:
        total: generated tokens per second, from the first request to the last token.
        read: tokens of prompts per second, in the same time.
        steady: tokens per second while all streams run; None: not asked for, or they never did.
        ttft: from a request to its first token.
        gaps: between tokens.
        steps: between tokens, while all streams run; as `steady`.
    """

    total: float
    read: float
    steady: float | None
    ttft: Spread | None
    gaps: Spread | None
    steps: Spread | None

    @staticmethod
    def of(streams: Sequence[Stream], together: bool) -> Figures:
        """Of streams with at least one token each. together: whether they are to run so."""
        begin = min(stream.sent for stream in streams)
        seconds = max(stream.times[-1] for stream in streams) - begin
        low = max(stream.times[0] for stream in streams)
        high = min(stream.times[-1] for stream in streams)
        together = together and high > low
        inside = sum(low < moment <= high for stream in streams for moment in stream.times)
        return Figures(
            sum(stream.tokens for stream in streams) / seconds,
            sum(stream.prompt_tokens for stream in streams) / seconds,
            inside / (high - low) if together else None,
            Spread.of([stream.times[0] - stream.sent for stream in streams]),
            Spread.of([gap for stream in streams for gap in stream.gaps()]),
            Spread.of([gap for s in streams for gap in s.gaps(low, high) if together]),
        )


@dataclass(frozen=True)
class Stall:
    """What running streams feel of a long prompt.

    Attributes:
        quiet: between tokens before it came.
        during: between tokens while it was read.
        first: seconds to its own first token.
    """

    quiet: Spread
    during: Spread
    first: float

    @property
    def ratio(self) -> float:
        """p99 while it is read, as a multiple of the median before."""
        return self.during.p99 / self.quiet.p50

    @staticmethod
    def of(streams: Sequence[Stream], long: Stream) -> Stall | None:
        """None where the streams ended too early, or had no tokens meanwhile."""
        all_run = max(stream.times[0] for stream in streams)
        quiet = Spread.of([g for s in streams for g in s.gaps(all_run, long.sent)])
        during = [
            b - a
            for stream in streams
            for a, b in pairwise(stream.times)
            if b > long.sent and a < long.times[0]
        ]
        spread = Spread.of(during)
        if quiet is None or spread is None:
            return None
        return Stall(quiet, spread, long.times[0] - long.sent)
