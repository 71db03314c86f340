"""Every engine under every limit, in turns, never two at the same time."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.memory.disk import bandwidth
from bench.memory.engines import Engine
from bench.memory.group import Group, GroupError
from bench.memory.planner import Expected, Planner, hit_rate
from bench.memory.prompt import Prompt
from bench.memory.read_ahead import ReadAheadError, set_read_ahead
from bench.memory.run import PHASES, Job, Measured, Phase
from bench.memory.watched import Counters, Watched, watch
from bench.peers.child import ROOT, ChildError
from bench.peers.cold import drop, files_of

from deepmnn.errors import DeepmnnError

NO_LIMIT = 0


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        engines, limits: in this order in the first round, in reverse in the next. limits: bytes.
        models: by "deepmnn" and "gguf". sources: checkouts by name. extra: words for the command
            line, by engine.
        greedy: each step runs the token that the engine chose, not the one that is given.
        compare: deepmnn also runs without a limit first, for its logits.
        work: the folder for programs, logs and logits. timeout: seconds for one run.
        stepping: seconds of steps after which a run ends with those that it came to.
    """

    engines: Sequence[Engine]
    limits: Sequence[int]
    models: dict[str, Path]
    sources: dict[str, Path]
    extra: dict[str, list[str]]
    prompt: Prompt
    steps: int
    greedy: bool
    threads: int
    repeat: int
    compare: bool
    python: str
    work: Path
    timeout: float
    stepping: float = math.inf


@dataclass
class Found:
    """Everything measured so far.

    rows: limit → engine → a run of each round. versions: of the engines. expected: by limit, of
    deepmnn, when the last round is over.
    """

    versions: dict[str, str] = field(default_factory=dict)
    rows: dict[int, dict[str, list[Measured]]] = field(default_factory=dict)
    expected: dict[int, Expected] = field(default_factory=dict)

    def add(self, limit: int, name: str, measured: Measured) -> None:
        self.rows.setdefault(limit, {}).setdefault(name, []).append(measured)


Say = Callable[[str], None]
Save = Callable[[Found], None]


def run(plan: Plan, found: Found, say: Say, save: Save) -> None:
    """Measures; what fails is noted, and the others continue. Raises GroupError."""
    ids = plan.prompt.ids + ([] if plan.greedy else plan.prompt.follow)
    (plan.work / "ids").write_text(" ".join(map(str, ids)))
    ours = next((engine for engine in plan.engines if engine.name == "deepmnn"), None)
    for number in range(plan.repeat):
        order = [(limit, engine) for limit in plan.limits for engine in plan.engines]
        if number % 2:
            order.reverse()
        if ours and plan.compare and not number:
            order.insert(0, (NO_LIMIT, ours))
        for limit, engine in order:
            measured = measure(plan, engine, limit)
            found.add(limit, engine.name, measured)
            say(line(engine, limit, measured))
            save(found)
    if ours:
        _ask_the_planner(plan, found, say)
        save(found)


def _ask_the_planner(plan: Plan, found: Found, say: Say) -> None:
    """With the disk as it was in each run."""
    context = len(plan.prompt.ids) + plan.steps
    try:
        planner = Planner.of(plan.models["deepmnn"], context, plan.threads)
        for limit, row in found.rows.items():
            if runs := [run for run in row.get("deepmnn", ()) if "decode" in run.phases]:
                disk = median(run.disk for run in runs)
                found.expected[limit] = planner.expected(limit, disk, hit_rate(runs))
    except DeepmnnError as error:
        say(str(error))


def measure(plan: Plan, engine: Engine, limit: int) -> Measured:
    """One run in a group of its own. Raises GroupError."""
    logits = plan.work / f"logits-{limit}.npy" if engine.name == "deepmnn" else None
    job = Job(
        plan.models[engine.model],
        plan.sources.get(engine.source),
        plan.python,
        plan.work / "ids",
        plan.prompt.text,
        len(plan.prompt.ids),
        plan.steps,
        plan.threads,
        limit,
        plan.work,
        plan.prompt.random and not plan.greedy,
        logits,
        plan.extra.get(engine.name, ()),
    )
    if engine.source and job.source is None:
        return Measured(failure="its checkout is missing: --source, see bench/README.md")
    if logits:
        logits.unlink(missing_ok=True)
    if why := drop(files_of(job.model)):
        return Measured(failure=f"no cold start: {why}")
    disk = bandwidth(job.model)
    try:
        command = engine.command(job)
        with set_read_ahead(job.model, engine.read_ahead), Group(limit) as group:
            watched = watch(command, group, engine.ends, plan.timeout, ROOT, stepping=plan.stepping)
    except (ChildError, ReadAheadError, OSError) as error:
        return Measured(failure=str(error))
    made = summed_up(job, engine, watched)
    made.command = command
    made.disk = max(disk, bandwidth(job.model))
    _log(plan.work / f"{engine.name}-{limit}.log", command, watched)
    if logits and limit != NO_LIMIT and plan.compare:
        made.same_bits = same_bits(logits, plan.work / f"logits-{NO_LIMIT}.npy")
    return made


def summed_up(job: Job, engine: Engine, watched: Watched) -> Measured:
    """The phases of a run: times as the engine tells them, counters as the kernel does.

    Where it was ended before it told its times, they are those between its lines.
    """
    told = engine.told(watched.lines)
    before, phases = Counters(), {}
    tokens = {"prefill": job.tokens, "decode": told.steps}
    for name in PHASES:
        if name in watched.counters:
            now = watched.counters[name]
            taken = asdict(now.since(before))
            seconds = taken.pop("seconds")
            phases[name] = Phase(told.seconds.get(name, seconds), tokens.get(name, 0), **taken)
            before = now
    return Measured(phases, watched.peak, watched.failure, len(set(told.ids)), own=told.own)


def same_bits(logits: Path, reference: Path) -> bool | None:
    """Whether two files of logits hold the same bytes; None where one is missing."""
    if not (logits.exists() and reference.exists()):
        return None
    return logits.read_bytes() == reference.read_bytes()


def _log(path: Path, command: Sequence[str], watched: Watched) -> None:
    lines = [shlex.join(command)]
    lines += [text for text in watched.lines if not text.startswith("BMOE_")]
    lines.append(json.dumps({name: asdict(each) for name, each in watched.counters.items()}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def limit_name(limit: int) -> str:
    """In GiB."""
    return f"{limit / (1 << 30):.3g} GiB" if limit else "no limit"


def line(engine: Engine, limit: int, made: Measured) -> str:
    """For the console."""
    words = [f"{limit_name(limit)}, {engine.title}:"]
    words += [
        f"{name} {phase.rate:.2f} tok/s" for name, phase in made.phases.items() if phase.tokens
    ]
    words += [made.failure] if made.failure else []
    return " ".join(words)


def raw(found: Found) -> dict[str, Any]:
    """For JSON."""
    return {
        str(limit): {name: [asdict(each) for each in runs] for name, runs in row.items()}
        for limit, row in found.rows.items()
    }


__all__ = ["Found", "GroupError", "Plan", "raw", "run"]
