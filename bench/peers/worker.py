"""One engine in a process of its own; its parent is `child.py`.

    python -m bench.peers.worker VERB ENGINE REQUEST

VERB is `version`, `exceeds`, `build`, `measure`, `cold`, or `machine` (of no engine), and REQUEST
their arguments as JSON; the answer is one line of JSON on standard output. What engines print goes
to standard error.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.peers.cold import drop, files_of, nbytes, read_seconds
from bench.peers.engine import Case, Cold, Measured, Session, Timing, builder, cases_of, engine

WARM_UP_TOKENS = 512
"""Prompts up to this length run once before they are timed. Longer ones need no warm-up: engines
split them, or they take so long that it would change little."""

WARM_UP_STEPS = 2
"""Steps before the timed ones."""

COLD_TOKENS = 8
"""The prompt of a cold start."""

Json = dict[str, Any]
Verb = Callable[[str, Json], Any]


def main(verbs: Mapping[str, Verb]) -> None:
    """Answers one request."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    verb, name, request = sys.argv[1:]
    found = verbs[verb](name, json.loads(request))
    answer.write(json.dumps(found) + "\n")
    answer.flush()
    sys.stderr.flush()
    os._exit(0)  # some engines crash when the interpreter shuts down


def version(name: str, request: Json) -> str | None:
    """The installed version."""
    return engine(name).version(path_of(request["source"]))


def exceeds(name: str, request: Json) -> str:
    """Why it cannot be limited to an instruction set."""
    return engine(name).exceeds(request["isa"], path_of(request["source"]))


def build(name: str, request: Json) -> str:
    """Builds the model; returns its path inside `out`."""
    out = Path(request["out"])
    paths = (path_of(request["needed"]), path_of(request["source"]))
    return builder(name).build(Path(request["config"]), out, *paths)


def measure(name: str, request: Json) -> Json:
    """Loads the model and runs every case."""
    read_files(Path(request["model"]))
    session, load_seconds = _first_token(name, request, [1])
    rng, vocab_size = random.Random(request["seed"]), request["vocab_size"]

    def draw(count: int) -> list[int]:
        """New tokens every time, because engines cache prompts."""
        return rng.choices(range(vocab_size), k=count)

    cases = cases_of(request["cases"])
    timings = {case.name: run_case(session, case, draw) for case in cases}
    peak, own = memory()
    return asdict(Measured(load_seconds, peak, own, timings))


def cold(name: str, request: Json) -> Json:
    """Loads the model from the disk, and then reads its files without an engine."""
    files = files_of(Path(request["model"]))
    size = nbytes(files)
    if missing := drop(files):
        return asdict(Cold(nbytes=size, missing=missing))
    _, seconds = _first_token(name, request, list(range(1, COLD_TOKENS + 1)))
    return asdict(Cold(seconds, read_seconds(files), size))


def _first_token(name: str, request: Json, prompt: list[int]) -> tuple[Session, float]:
    """The loaded model, and the seconds until the prompt's logits; imports are not timed."""
    runs, source = engine(name), path_of(request["source"])
    runs.version(source)
    began = perf_counter()
    session = runs.load(Path(request["model"]), request["threads"], source)
    session.reserve(1, len(prompt) + 1)
    session.start([prompt])
    return session, perf_counter() - began


def machine(name: str, request: Json) -> Json:
    """This machine's limits."""
    from bench.peers.limits import measure_machine

    return asdict(measure_machine(request["threads"]))


def run_case(session: Session, case: Case, draw: Callable[[int], list[int]]) -> Timing:
    """The wall times of one case."""
    if session.most is not None and case.batch > session.most:
        return Timing(missing="no batching")

    def start() -> float:
        prompts = [draw(case.tokens) for _ in range(case.batch)]
        began = perf_counter()
        session.start(prompts)
        return perf_counter() - began

    session.reserve(case.batch, case.tokens + case.steps + WARM_UP_STEPS)
    if not case.steps:
        if case.tokens <= WARM_UP_TOKENS:
            start()
        return Timing([start() for _ in range(case.repeat)])
    start()
    return Timing(_steps(session, case, draw)[WARM_UP_STEPS:])


def _steps(session: Session, case: Case, draw: Callable[[int], list[int]]) -> list[float]:
    times = []
    for _ in range(case.steps + WARM_UP_STEPS):
        tokens = draw(case.batch)
        began = perf_counter()
        session.step(tokens)
        times.append(perf_counter() - began)
    return times


def read_files(model: Path) -> None:
    """Reads a model's files into the page cache, so that no engine waits for the disk."""
    for path in files_of(model):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def memory() -> tuple[int, int]:
    """The peak bytes of this process, and its present bytes without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {key: value for key, _, value in (line.partition(":") for line in lines)}
    peak, own = (1024 * int(fields[name].split()[0]) for name in ("VmHWM", "RssAnon"))
    return peak, own


def path_of(text: str | None) -> Path | None:
    return None if text is None else Path(text)


VERBS: dict[str, Verb] = {
    "version": version,
    "exceeds": exceeds,
    "build": build,
    "measure": measure,
    "cold": cold,
    "machine": machine,
}

if __name__ == "__main__":
    main(VERBS)
