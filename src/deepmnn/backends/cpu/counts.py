"""What the C++ core has counted of its steps, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from deepmnn import _core

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

_OWN, _STEAL, _WAIT = 2, 3, 4
"""Columns of a worker's nanoseconds."""


@dataclass(frozen=True)
class Counts:
    """Costs by zone: a program's instructions, in order, then `_core.PARTS`, the parts around them.

    Attributes:
        calls: [zones].
        seconds: [zones], of the thread that runs the step; it is in one zone at a time.
        busy: [zones], seconds of all threads in work of their own.
        stealing: [zones], in pieces of another thread's part, and looking for them.
        waiting: [zones], neither: with the other two, seconds × threads.
        pieces, stolen: [zones], pieces of work that were run, and those of them that were stolen.
        threads: [threads, 3], busy, stealing and waiting seconds of each.
    """

    calls: I64
    seconds: F64
    busy: F64
    stealing: F64
    waiting: F64
    pieces: I64
    stolen: I64
    threads: F64

    @staticmethod
    def total(found: Sequence[Counts]) -> Counts:
        """Of several takes, at least one."""
        return Counts(
            *(sum(getattr(each, field.name) for each in found) for field in fields(Counts))
        )

    @staticmethod
    def take(core: _core.Model) -> Counts:
        """What has been counted since the last time, or since `start_profile`."""
        zones, *each = core.profile(reset=True)
        work = np.stack(each)  # [threads, zones, 5]
        seconds = zones[:, 1] / 1e9
        busy, stealing = work[:, :, _OWN] / 1e9, work[:, :, _STEAL] / 1e9
        busy[0] = seconds - stealing[0] - work[0, :, _WAIT] / 1e9
        waiting = np.maximum(seconds - busy - stealing, 0.0)
        return Counts(
            calls=zones[:, 0],
            seconds=seconds,
            busy=busy.sum(axis=0),
            stealing=stealing.sum(axis=0),
            waiting=waiting.sum(axis=0),
            pieces=work[:, :, 0].sum(axis=0),
            stolen=work[:, :, 1].sum(axis=0),
            threads=np.stack([busy.sum(axis=1), stealing.sum(axis=1), waiting.sum(axis=1)], axis=1),
        )
