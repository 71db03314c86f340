"""Raw times → speeds, ratios to the best peer, shares of the machine's limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, median, pvariance

from bench.peers.engine import Case, Measured

OURS = "deepmnn_cpu"

COSTS = ("load_seconds", "cold_seconds", "peak_nbytes")
"""Figures of a column for which smaller is better."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one case: the median of the rounds, the slowest and the fastest.

    step_ms, step_sd_ms: of decode: a step's mean time and its standard deviation inside a round,
    in milliseconds; None for prefill.
    """

    median: float
    low: float
    high: float
    step_ms: float | None = None
    step_sd_ms: float | None = None


@dataclass
class Column:
    """One engine on one shape. missing: why a case has no speed, by the case's name.

    failure: why it has no speed at all; "" otherwise. Bytes and seconds are medians of the rounds.
    cold_seconds, disk_seconds: a cold start, and what the disk needs for the files (engine.Cold).
    """

    engine: str
    speeds: dict[str, Speed] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    load_seconds: float | None = None
    peak_nbytes: float | None = None
    own_nbytes: float | None = None
    cold_seconds: float | None = None
    disk_seconds: float | None = None
    cold_missing: str = ""
    failure: str = ""


def column(engine: str, cases: Sequence[Case], rounds: Sequence[Measured | str]) -> Column:
    """Sums up the rounds of one engine; a failed round is given by its reason."""
    made = Column(engine)
    good = [measured for measured in rounds if isinstance(measured, Measured)]
    failures = [reason for reason in rounds if isinstance(reason, str)]
    if failures:
        made.failure = failures[0]
    if not good:
        return made
    made.load_seconds = median(measured.load_seconds for measured in good)
    made.peak_nbytes = median(measured.peak_nbytes for measured in good)
    made.own_nbytes = median(measured.own_nbytes for measured in good)
    colds = [measured.cold for measured in good]
    made.cold_missing = next((cold.missing for cold in colds if cold.missing), "")
    made.cold_seconds = _median([cold.seconds for cold in colds])
    made.disk_seconds = _median([cold.disk_seconds for cold in colds])
    for case in cases:
        timings = [measured.timings[case.name] for measured in good]
        if times := [timing.seconds for timing in timings if timing.seconds]:
            made.speeds[case.name] = speed(case, times)
        else:
            made.missing[case.name] = timings[0].missing
    return made


def _median(values: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def speed(case: Case, rounds: Sequence[Sequence[float]]) -> Speed:
    """Of the times of each round: of repetitions, or of steps."""
    if not case.steps:
        rates = [case.batch * case.tokens / median(times) for times in rounds]
        return Speed(median(rates), min(rates), max(rates))
    rates = [case.batch * len(times) / sum(times) for times in rounds]
    mean = fmean(fmean(times) for times in rounds)
    deviation = sqrt(fmean(pvariance(times) for times in rounds))
    return Speed(median(rates), min(rates), max(rates), 1e3 * mean, 1e3 * deviation)


def best_peer(columns: Sequence[Column], case: Case) -> Column | None:
    """The fastest peer."""
    peers = [c for c in columns if c.engine != OURS and case.name in c.speeds]
    return max(peers, key=lambda peer: peer.speeds[case.name].median, default=None)


def ratio(columns: Sequence[Column], engine: str, case: Case) -> float | None:
    """An engine's speed over the best peer's; None unless both are known."""
    best = best_peer(columns, case)
    found = next((c.speeds.get(case.name) for c in columns if c.engine == engine), None)
    return None if best is None or found is None else found.median / best.speeds[case.name].median


def leanest_peer(columns: Sequence[Column], figure: str) -> Column | None:
    """The peer whose figure of COSTS is smallest."""
    peers = [c for c in columns if c.engine != OURS and getattr(c, figure) is not None]
    return min(peers, key=lambda peer: float(getattr(peer, figure)), default=None)


def cost_ratio(columns: Sequence[Column], engine: str, figure: str) -> float | None:
    """An engine's figure of COSTS over the leanest peer's; None unless both are known."""
    best = leanest_peer(columns, figure)
    found = next((getattr(c, figure) for c in columns if c.engine == engine), None)
    return None if best is None or found is None else float(found / getattr(best, figure))


def as_json(
    columns: Sequence[Column], cases: Sequence[Case], limits: Mapping[str, float]
) -> dict[str, object]:
    """One shape's figures; shares and ratios are fractions."""
    return {
        "limits": dict(limits),
        "engines": {made.engine: _engine(made, columns, cases, limits) for made in columns},
    }


def _engine(
    made: Column, columns: Sequence[Column], cases: Sequence[Case], limits: Mapping[str, float]
) -> dict[str, object]:
    figures: dict[str, object] = {}
    for case in cases:
        if found := made.speeds.get(case.name):
            figures[case.name] = {
                **vars(found),
                "ratio": ratio(columns, made.engine, case),
                "share": found.median / limits[case.name],
            }
        elif case.name in made.missing:
            figures[case.name] = {"missing": made.missing[case.name]}
    return {
        "cases": figures,
        "load_seconds": made.load_seconds,
        "peak_nbytes": made.peak_nbytes,
        "own_nbytes": made.own_nbytes,
        "cold_seconds": made.cold_seconds,
        "disk_seconds": made.disk_seconds,
        "cold_missing": made.cold_missing,
        "ratios": {figure: cost_ratio(columns, made.engine, figure) for figure in COSTS},
        "failure": made.failure,
    }
