"""What each thread did when, and the same in the format of chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepmnn import _core
from deepmnn.backends.cpu.counts import I64
from deepmnn.backends.cpu.reads import CAUSE, GUESSED, NBYTES, UNIT, USED, Reads
from deepmnn.inspect.profile.engine import STEP, Laps, Mark

_ZONE = 0
_DOING = {1: "own part", 2: "stolen", 3: "waiting"}
"""As `_core.Model.spans` numbers them."""

_CAUSES = ("wanted", "guessed", "read ahead")
"""As `backends.cpu.reads` numbers them."""

_PROCESS = 1


@dataclass(frozen=True)
class Event:
    """A span of time in nanoseconds; category: "phase", "engine", "op", "core", "pieces",
    "read" or "wait" (for a read).
    """

    name: str
    category: str
    begin: int
    end: int
    facts: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreadTrace:
    """Of one thread, by their beginning; what is inside another comes after it.

    Reads from the disk are in lanes as if of threads: as many as were on their way at once.
    """

    name: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class Trace:
    """Of all threads; lost: spans for which there was no room, the earliest of each thread, and of
    reads and waits for them.
    """

    threads: tuple[ThreadTrace, ...]
    lost: int = 0


def traced(core: _core.Model | None, phases: Sequence[Mark], steps: Sequence[Laps]) -> Trace:
    """What has happened, in Python and in the core (None: the backend is another one)."""
    first = [Event(name, "phase", begin, end) for name, begin, end in phases]
    for laps in steps:
        marks = (Mark(STEP, laps.begun, laps.ended), *laps.parts())
        first += [Event(name, "engine", begin, end) for name, begin, end in marks]
    spans = core.spans() if core is not None else []
    names = _zones(core) if core is not None else []
    reads = Reads.take(core) if core is not None else None
    first += _waits(reads) if reads is not None else []
    threads = []
    for number, (_, rows) in enumerate(spans or [(0, np.empty((0, 5), np.int64))]):
        events = [*(first if number == 0 else []), *_events(rows, names)]
        events.sort(key=lambda event: (event.begin, -event.end, event.category == "pieces"))
        threads.append(ThreadTrace(f"worker {number}" if number else "engine", tuple(events)))
    lanes = _lanes(reads) if reads is not None else []
    threads += [ThreadTrace(f"disk, read {lane}", tuple(each)) for lane, each in enumerate(lanes)]
    lost = sum(lost for lost, _ in spans) + (reads.lost if reads is not None else 0)
    return Trace(tuple(threads), lost)


def _waits(reads: Reads) -> list[Event]:
    """In the lane of the engine: it is its thread that waits."""
    return [
        Event(f"waits for {reads.what(unit)}", "wait", begin, end)
        for begin, end, unit in reads.waits.tolist()
    ]


def _lanes(reads: Reads) -> list[list[Event]]:
    """The reads, each in the first lane in which the one before it has ended."""
    lanes: list[list[Event]] = []
    for row in sorted(reads.reads.tolist()):
        begin, end = row[:2]
        facts: dict[str, int | str] = {"bytes": row[NBYTES], "why": _CAUSES[row[CAUSE]]}
        if row[CAUSE] == GUESSED:
            facts["used"] = "yes" if row[USED] else "not so far"
        lane = next((lane for lane in lanes if lane[-1].end <= begin), None)
        if lane is None:
            lane = []
            lanes.append(lane)
        lane.append(Event(reads.what(row[UNIT]), "read", begin, end, facts))
    return lanes


BEGIN = b'{"traceEvents": '
"""How a trace's JSON begins."""


def chrome(trace: Trace, title: str) -> dict[str, Any]:
    """The trace event format: complete events ("X") in microseconds, and names ("M")."""
    begin = min((e.begin for thread in trace.threads for e in thread.events), default=0)
    events: list[dict[str, Any]] = [_name("process_name", 0, title)]
    for number, thread in enumerate(trace.threads):
        events.append(_name("thread_name", number, thread.name))
        events.append({**_name("thread_sort_index", number, ""), "args": {"sort_index": number}})
        events += [
            {
                "name": event.name,
                "cat": event.category,
                "ph": "X",
                "ts": (event.begin - begin) / 1e3,
                "dur": (event.end - event.begin) / 1e3,
                "pid": _PROCESS,
                "tid": number,
                "args": dict(event.facts),
            }
            for event in thread.events
        ]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"program": "deepmnn", "lost_spans": trace.lost},
    }


def _name(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": thread, "args": {"name": name}}


def _zones(core: _core.Model) -> list[tuple[str, str, str]]:
    """(name, category, op) of each."""
    ops = [(entry["name"], "op", entry["op"]) for entry in core.instructions]
    return ops + [(part, "core", "") for part in _core.PARTS]


def _events(rows: I64, zones: Sequence[tuple[str, str, str]]) -> list[Event]:
    events = []
    for begin, end, zone, doing, pieces in rows.tolist():
        name, category, op = zones[zone]
        if doing == _ZONE:
            events.append(Event(name, category, begin, end, {"op": op} if op else {}))
        else:
            facts: dict[str, int | str] = {"of": name, "pieces": pieces} if pieces else {"of": name}
            events.append(Event(_DOING[doing], "pieces", begin, end, facts))
    return events
