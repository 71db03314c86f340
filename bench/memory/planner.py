"""What `deepmnn plan` expects of the runs that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.memory.deepmnn_run import KV_DTYPE
from bench.memory.run import Measured

from deepmnn.api.options import LoadOptions
from deepmnn.measure.expected import Speeds, hit_share
from deepmnn.measure.planned import Subject, machine_speeds, planned


@dataclass(frozen=True)
class Expected:
    """Of one limit: tokens per second, of the first prompt and after it; the share of a token's
    experts that are cached. given: decode with the share that the run had.
    """

    prefill: float
    decode: float
    hit_rate: float
    given: float


@dataclass(frozen=True)
class Planner:
    """A model on this machine."""

    subject: Subject
    speeds: Speeds
    options: LoadOptions

    @staticmethod
    def of(model: Path, context: int, threads: int) -> Planner:
        """Raises as `Subject.open`, and StorageError."""
        subject = Subject.open(str(model))
        options = LoadOptions(cache_tokens=context, kv_dtype=KV_DTYPE, threads=threads)
        return Planner(subject, machine_speeds(subject, threads), options)

    def expected(self, limit: int, disk: float, hit_rate: float | None) -> Expected:
        """In a budget of so many bytes; disk: bytes per second beside the run, 0: as it is now;
        hit_rate: of the run. Raises RequestError.
        """
        speeds = replace(self.speeds, disk=disk) if disk else self.speeds
        options = replace(self.options, memory=limit or None)
        usual = planned(self.subject, options, speeds)
        given = planned(self.subject, options, speeds, hit_rate)
        return Expected(
            usual.first.tokens_per_second,
            usual.decode.tokens_per_second,
            hit_share(usual.split.weights),
            given.decode.tokens_per_second,
        )


def hit_rate(runs: Sequence[Measured]) -> float | None:
    """Of the experts that decode chose, those in memory: the median of the runs."""
    rates = []
    for run in runs:
        counts: Mapping[str, float] = run.own.get("decode") or {}
        if chosen := counts.get("expert_hits", 0) + counts.get("expert_misses", 0):
            rates.append(counts["expert_hits"] / chosen)
    return median(rates) if rates else None
