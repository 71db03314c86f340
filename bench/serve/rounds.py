"""Every case with every server in turn, never two at the same time."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from bench.peers.child import ChildError, Peer, call
from bench.serve.cases import Arriving, Case, Steady
from bench.serve.client import Exchange
from bench.serve.figures import Figures, Stall, Stream
from bench.serve.loads import Ask, Target
from bench.serve.process import cpu_seconds, memory
from bench.serve.servers import KINDS, Kind, start

BARE = "bare engine"
WARM = Ask(list(range(300, 332)), 4)
"""Asked before each load."""


@dataclass(frozen=True)
class Measured:
    """What one server did with one case.

    Attributes:
        figures, stall: see there.
        events: events with text for each generated token: 1 where every token comes alone.
        busy: processor time of the server, and of this client, per second.
        memory: bytes of the server at the end (process.memory); empty: not measured.
        failed: answers that were none, by reason.
    """

    figures: Figures
    stall: Stall | None = None
    events: float = 1.0
    busy: tuple[float, float] = (0.0, 0.0)
    memory: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)


Row = dict[str, Measured | str]
"""Server → what was measured, or why not."""


@dataclass
class Found:
    """Everything measured so far: versions of the servers, and case → row."""

    versions: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    models, sources: of each kind of server by name. work: the folder for logs.
    """

    kinds: Sequence[Kind]
    cases: Sequence[Case]
    models: dict[str, Path]
    sources: dict[str, Path]
    threads: int
    vocab_size: int
    seed: int
    work: Path
    timeout: float
    bare: bool = True


Save = Callable[[Found], None]


def run(plan: Plan, found: Found, say: Callable[[str], None], save: Save) -> None:
    """Measures; what fails is noted, and the others continue."""
    for case in plan.cases:
        row = found.rows.setdefault(case.name, {})
        if plan.bare and isinstance(case, Steady):
            row[BARE] = _try(partial(_bare, plan, case))
            say(_line(case, BARE, row[BARE]))
            save(found)
        for kind in plan.kinds:
            row[kind.name] = _try(partial(serve, plan, kind, case))
            say(_line(case, kind.name, row[kind.name]))
            save(found)


def _try(measure: Callable[[], Measured]) -> Measured | str:
    try:
        return measure()
    except ChildError as error:
        return str(error)


def serve(plan: Plan, kind: Kind, case: Case) -> Measured:
    """One case on a server that is started for it. Raises ChildError."""
    log = plan.work / f"{kind.name}.log"
    source = plan.sources.get(kind.name)
    with start(kind, plan.models[kind.name], case.room, plan.threads, source, log) as running:
        try:
            loaded = asyncio.run(_load(plan, case, running.target, running.pid))
        except TimeoutError:
            raise ChildError(f"it did not answer within {plan.timeout:.0f} s") from None
        except OSError as error:
            raise ChildError(f"it took no connection: {error}") from error
        exchanges, busy = loaded
        return _measured(case, exchanges, busy, memory(running.pid))


async def _load(
    plan: Plan, case: Case, target: Target, pid: int
) -> tuple[list[Exchange], tuple[float, float]]:
    """The exchanges, and the share of a processor that server and client took meanwhile."""
    async with asyncio.timeout(plan.timeout):
        warm = await target.ask(WARM)
        await warm.ended
        if error := warm.read().error:
            raise ChildError(error)
        wall, server, client = perf_counter(), cpu_seconds(pid), process_time()
        exchanges = await case.load(plan.vocab_size, plan.seed)(target)
        wall = perf_counter() - wall
        return exchanges, (
            (cpu_seconds(pid) - server) / wall,
            (process_time() - client) / wall,
        )


def _measured(
    case: Case,
    exchanges: Sequence[Exchange],
    busy: tuple[float, float],
    used: dict[str, int],
) -> Measured:
    """Raises ChildError where no answer is whole."""
    replies = [exchange.read() for exchange in exchanges]
    failed: dict[str, int] = {}
    for reply in replies:
        if reply.error or not reply.times:
            reason = reply.error or "no tokens"
            failed[reason] = failed.get(reason, 0) + 1
    pairs = [
        (exchange, reply)
        for exchange, reply in zip(exchanges, replies, strict=True)
        if not reply.error and reply.times
    ]
    if not pairs:
        raise ChildError(next(iter(failed)))
    streams = [
        Stream(e.sent, r.times, r.tokens, int(r.usage.get("prompt_tokens", 0))) for e, r in pairs
    ]
    stall = None
    if isinstance(case, Arriving) and not failed:
        stall = Stall.of(streams[:-1], streams[-1])
    events = sum(len(s.times) for s in streams) / sum(s.tokens for s in streams)
    return Measured(
        Figures.of(streams, isinstance(case, Steady)), stall, events, busy, used, failed
    )


def _bare(plan: Plan, case: Steady) -> Measured:
    """Raises ChildError."""
    asks = case.load(plan.vocab_size, plan.seed).asks
    path = plan.work / "asks.json"
    path.write_text(json.dumps([asdict(ask) for ask in asks]))
    request = {
        "asks": str(path),
        "model": str(plan.models["deepmnn"]),
        "threads": plan.threads,
        "tokens": case.room.tokens,
    }
    peer, log = Peer("deepmnn", sys.executable), plan.work / "bare.log"
    found: list[dict[str, Any]] = call(
        peer, "stream", request, plan.timeout, log, "bench.serve.bare"
    )
    return Measured(Figures.of([Stream(**fields) for fields in found], together=True))


def _line(case: Case, name: str, found: Measured | str) -> str:
    if isinstance(found, str):
        return f"{case.name}, {name}: {found}"
    text = f"{case.name}, {name}: {found.figures.total:.1f} tok/s"
    if found.figures.ttft:
        text += f", first token {found.figures.ttft.p50:.2f} s"
    if found.figures.steps:
        steps = found.figures.steps
        text += f", step {1e3 * steps.p50:.1f} ± {1e3 * steps.deviation:.1f} ms"
    if found.stall:
        text += f", stall {found.stall.ratio:.1f}"
    return text


def title(name: str) -> str:
    """Of a server, or of the bare engine."""
    return next((kind.title for kind in KINDS if kind.name == name), name)
