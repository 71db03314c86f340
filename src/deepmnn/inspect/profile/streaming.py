"""What a phase read from the disk, and whether it was the disk that took the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepmnn.backends.cpu import reads as columns
from deepmnn.backends.cpu.counts import I64
from deepmnn.backends.cpu.reads import Reads
from deepmnn.conversion.report.facts import layer_of

KEPT = 1 << 16
"""Reads and waits that are remembered of each run; 4 MB."""


@dataclass(frozen=True)
class LayerReads:
    """Of one layer (None: outside of them) in a phase.

    Attributes:
        reads, nbytes: from the disk.
        waiting: seconds that steps waited for one of its reads.
        hits, misses: of the experts that steps chose: in memory by then, or not.
        guesses, guesses_used: experts that were read before they were chosen, and then were.
    """

    layer: int | None
    reads: int
    nbytes: int
    waiting: float
    hits: int
    misses: int
    guesses: int
    guesses_used: int


@dataclass(frozen=True)
class Streaming:
    """Of a phase.

    Attributes:
        steps, seconds: of the phase.
        reads, nbytes: from the disk; missed_nbytes: without guesses that nobody used.
        reading: seconds in which at least one read was on its way.
        waiting: seconds that steps stood still until something came.
        hits, misses, guesses, guesses_used: of all layers, as `LayerReads` has them.
        disk: bytes a second that the disk gives when it has enough to do, as these reads show it.
        layers: in order, those outside last. Of the latest KEPT reads of each run.
    """

    steps: int
    seconds: float
    reads: int
    nbytes: int
    missed_nbytes: float
    reading: float
    waiting: float
    hits: int
    misses: int
    guesses: int
    guesses_used: int
    disk: float
    layers: tuple[LayerReads, ...]

    @staticmethod
    def of(
        counts: Mapping[str, float], taken: Sequence[Reads], steps: int, seconds: float
    ) -> Streaming:
        """counts: of `_core.Model.streaming`, those of the phase; taken: of each of its runs."""
        rows = [each.reads for each in taken]
        every = np.concatenate(rows) if rows else np.empty((0, 6), np.int64)
        wrong = (every[:, columns.CAUSE] == columns.GUESSED) & (every[:, columns.USED] == 0)
        nbytes = every[:, columns.NBYTES]
        average = counts["read_nbytes"] / (counts["read_seconds"] or float("inf"))
        useless = float(nbytes[wrong].sum()) / max(1, int(nbytes.sum()))
        return Streaming(
            steps,
            seconds,
            int(counts["reads"]),
            int(counts["read_nbytes"]),
            counts["read_nbytes"] * (1 - useless),
            counts["read_seconds"],
            counts["wait_seconds"],
            int(counts["expert_hits"]),
            int(counts["expert_misses"]),
            int(counts["predicted"]),
            int(counts["predicted_used"]),
            max(average, *(_busy_bandwidth(each.reads) for each in taken), 0.0),
            _layers(taken),
        )

    @property
    def bandwidth(self) -> float:
        """Bytes a second, while anything was read."""
        return self.nbytes / self.reading if self.reading else 0.0

    @property
    def hit_rate(self) -> float | None:
        """Of the experts that steps chose, those that were in memory; None: there are none."""
        chosen = self.hits + self.misses
        return self.hits / chosen if chosen else None

    @property
    def disk_seconds(self) -> float:
        """That the disk takes for what was missed, if it never rests."""
        return self.missed_nbytes / (self.disk or float("inf"))

    @property
    def compute_seconds(self) -> float:
        """Of everything but waiting for the disk."""
        return self.seconds - self.waiting

    @property
    def bound_share(self) -> float:
        """Of the time, what the slower one of disk and everything else takes: 1 is the best."""
        return max(self.disk_seconds, self.compute_seconds) / self.seconds if self.seconds else 1.0

    @property
    def binds(self) -> str:
        """The slower one: "disk" or "compute"."""
        return "disk" if self.disk_seconds > self.compute_seconds else "compute"

    def figures(self) -> dict[str, Any]:
        """What follows from the fields."""
        names = ("bandwidth", "hit_rate", "disk_seconds", "compute_seconds", "bound_share", "binds")
        return {name: getattr(self, name) for name in names}


def _busy_bandwidth(reads: I64) -> float:
    """Bytes a second while that many reads were on their way at once with which most came.

    Only numbers of reads that make up a tenth of the time count. A read's bytes come evenly.
    """
    begins, ends = reads[:, columns.BEGIN], reads[:, columns.END]
    rates = reads[:, columns.NBYTES] / np.maximum(1, ends - begins)
    times = np.concatenate([begins, ends])
    order = np.argsort(times, kind="stable")
    lasted = np.diff(times[order])
    one = np.ones(len(reads))
    flying = np.cumsum(np.concatenate([one, -one])[order])[:-1].astype(np.int64)
    came = np.cumsum(np.concatenate([rates, -rates])[order])[:-1] * lasted
    spent = np.bincount(flying, lasted)
    nbytes = np.bincount(flying, came)
    often = (spent >= spent[1:].sum() / 10) & (np.arange(len(spent)) > 0)
    return float((nbytes[often] / np.maximum(1, spent[often])).max(initial=0.0)) * 1e9


def _layers(taken: Sequence[Reads]) -> tuple[LayerReads, ...]:
    if not taken:
        return ()
    layers = [layer_of(name) for name, _ in taken[0].units]
    numbers = np.array([-1 if layer is None else layer for layer in layers], np.int64)
    size = int(numbers.max()) + 2  # the last one is outside of the layers: index -1

    sums = np.zeros((size, 7))
    for each in taken:
        reads, waits = each.reads, each.waits[each.waits[:, columns.UNIT] >= 0]
        at = numbers[reads[:, columns.UNIT]]
        np.add.at(sums[:, 0], at, 1)
        np.add.at(sums[:, 1], at, reads[:, columns.NBYTES])
        times = (waits[:, columns.END] - waits[:, columns.BEGIN]) / 1e9
        np.add.at(sums[:, 2], numbers[waits[:, columns.UNIT]], times)
        np.add.at(sums[:, 3:], numbers, each.choices)
    found = []
    for index, row in enumerate(sums.tolist()):
        if not any(row):
            continue
        reads_, nbytes, waiting, *rest = row
        layer = None if index == size - 1 else index
        found.append(LayerReads(layer, int(reads_), int(nbytes), waiting, *map(int, rest)))
    return tuple(found)
