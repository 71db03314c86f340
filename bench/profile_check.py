"""Whether a profile can be believed: its shares beside those of `perf`, and what counting costs.

    python bench/profile_check.py [MODEL ...] --seconds 20

Prints Markdown, for tiny-r1 and every converted model given. Needs Linux, `perf` and a compiler:
the core is built once more in build/perf, with symbols and frame pointers.

Shares: `perf` looks 2000 times a second at what the engine's thread does, and knows nothing of our
clocks. A sample belongs to the op whose `run` is on its stack, and its share is of all samples of
the thread, as ours is of the wall time.

Overhead: decode steps in turns, of the core alone with nothing counted, with counts, and with both
counts and spans; and of the engine with and without a profile. Every figure is the median over the
rounds of the ratio to the turn beside it with nothing counted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, perf_counter_ns
from typing import Annotated, Any

import numpy as np
import typer

import deepmnn

if "DEEPMNN_CORE" in os.environ:  # of a child that perf looks at
    import sanitized_core  # noqa: F401

from deepmnn import _core
from deepmnn.backends.cpu.counts import Counts
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.engine.engine import Engine
from deepmnn.inspect.profile.engine import TimedEngine

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "perf"
FLAGS = "-O3 -DNDEBUG -g1 -fno-omit-frame-pointer -fno-optimize-sibling-calls"

CONTEXT, PROMPT = 128, 128
OPS = 5
"""That are compared."""

FREQUENCY = 1999
TURN = 0.15
"""Seconds of one turn."""

SPANS = 1 << 16
RUN = re.compile(r"(\w+)::run$")
THREAD = re.compile(r"\s(\d+)\s+([\d.]+):\s*$")


def build() -> None:
    """The core with symbols, in BUILD."""
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    options.append(f"-DCMAKE_CXX_FLAGS_RELWITHDEBINFO={FLAGS}")
    make = ["cmake", "--build", str(BUILD), "--target", "_core", "--parallel"]
    for command in (["cmake", "-S", str(ROOT), "-B", str(BUILD), *options], make):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Runs:
    """Steps of one sequence, straight on the core."""

    def __init__(self, core: _core.Model) -> None:
        self.core = core
        self.cache = core.new_cache(CONTEXT + 1, 1)

    def step(self, tokens: int, history: int) -> None:
        """New tokens after cached ones."""
        ids = np.arange(tokens, dtype=np.int32) % self.core.vocab_size
        positions = np.arange(history, history + tokens, dtype=np.int32)
        starts, length = np.array([0, tokens], np.int32), np.array([history + tokens], np.int32)
        table = np.arange(history + tokens, dtype=np.int32)[None]
        last = np.array([tokens - 1], np.int32)
        self.core.step(self.cache, ids, positions, starts, length, table, last)

    def phase(self, name: str) -> None:
        """One step of a phase."""
        self.step(*((PROMPT, 0) if name == "prefill" else (1, CONTEXT)))


def child(path: Path, phase: str, threads: int, seconds: float) -> dict[str, Any]:
    """What the core counts of a phase, while perf looks on."""
    core = _core.Model(path, threads)
    runs = Runs(core)
    runs.step(PROMPT, 0)
    core.start_profile()
    begin = perf_counter_ns()
    while perf_counter_ns() < begin + seconds * 1e9:
        runs.phase(phase)
    end = perf_counter_ns()
    counts, spent = Counts.take(core), Counter[str]()
    for zone, entry in enumerate(core.instructions):
        spent[entry["op"]] += float(counts.seconds[zone])
    shares = {op: value * 1e9 / (end - begin) for op, value in spent.items()}
    return {"thread": threading.get_native_id(), "begin": begin, "end": end, "shares": shares}


def looked_at(path: Path, phase: str, threads: int, seconds: float) -> list[list[str]]:
    """Rows of a table: op, our share, that of perf, the difference in points."""
    with TemporaryDirectory() as folder:
        data, out = Path(folder) / "perf.data", Path(folder) / "out.json"
        record = [
            "perf",
            "record",
            "-q",
            "-e",
            "cpu-clock",
            "-F",
            str(FREQUENCY),
            "-k",
            "MONOTONIC",
        ]
        record += ["--call-graph", "fp", "-o", str(data), sys.executable, __file__, str(path)]
        record += ["--child", phase, "--threads", str(threads), "--seconds", str(seconds)]
        with out.open("w") as file:
            env = os.environ | {"DEEPMNN_CORE": str(BUILD), "PYTHONPATH": str(ROOT / "tools")}
            subprocess.run(record, check=True, stdout=file, env=env)
        found = json.loads(out.read_text())
        script = ["perf", "script", "-i", str(data), "-F", "tid,time,ip,sym", "--ns"]
        text = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    samples = Counter(sampled(text, found["thread"], found["begin"] / 1e9, found["end"] / 1e9))
    whole = samples.total()
    ours = Counter[str](found["shares"])
    rows = []
    for op, share in ours.most_common(OPS):
        theirs = samples[op.replace("_", "")] / whole
        row = [phase, str(threads), op, f"{share:.1%}", f"{theirs:.1%}"]
        rows.append([*row, f"{100 * (share - theirs):+.1f}"])
    return rows


def sampled(script: str, thread: int, begin: float, end: float) -> list[str]:
    """For each sample of a thread, the class of the op that runs ("" outside of ops)."""
    found: list[str] = []
    counted = False
    for line in script.splitlines():
        if head := THREAD.match(line):
            counted = int(head[1]) == thread and begin <= float(head[2]) <= end
            if counted:
                found.append("")
        elif counted and not found[-1] and (run := RUN.search(line)):
            found[-1] = run[1].removesuffix("Op").lower()
    return found


def overhead(path: Path, threads: int, seconds: float) -> list[str]:
    """A row: microseconds of a decode step with nothing counted, and the cost of counting."""
    core = _core.Model(path, threads)
    runs = Runs(core)
    runs.step(PROMPT, 0)
    ways: dict[str, list[float]] = {"off": [], "counts": [], "spans": []}
    end = perf_counter() + seconds
    while perf_counter() < end:
        order = list(ways)
        for way in order if len(ways["off"]) % 2 else order[::-1]:
            if way != "off":
                core.start_profile(SPANS if way == "spans" else 0)
            ways[way].append(turn(runs))
            core.stop_profile()
    costs = (
        f"{median(on / off - 1 for on, off in zip(ways[way], ways['off'], strict=True)):+.1%}"
        for way in ("counts", "spans")
    )
    return [path.name, str(threads), f"{median(ways['off']) * 1e6:.1f}", *costs]


def engine_overhead(path: Path, threads: int, seconds: float) -> list[str]:
    """A row: microseconds of a whole decode step of one answer, and the cost of a profile."""
    model = deepmnn.load(path, "cpu", threads)
    params = replace(model.generation_config.params, ignore_eos=True)
    core, backend = model.backend.model, model.backend  # type: ignore[attr-defined]
    engines = Engine(backend, 1024, 512), TimedEngine(backend, 1024, 512)
    turns: tuple[list[float], list[float]] = ([], [])
    end = perf_counter() + seconds
    while perf_counter() < end:
        for which in (0, 1) if len(turns[0]) % 2 else (1, 0):
            if which:
                core.start_profile()
            turns[which].append(answered(engines[which], params))
            core.stop_profile()
        engines[1].clear()
    ratios = (on / off - 1 for off, on in zip(*turns, strict=True))
    return [path.name, str(threads), f"{median(turns[0]) * 1e6:.1f}", f"{median(ratios):+.1%}"]


def answered(engine: Engine, params: deepmnn.SamplingParams) -> float:
    """Seconds of a decode step: the median of a turn's."""
    ids = [id % engine.backend.vocab_size for id in range(PROMPT)]
    sequence = engine.submit(ids, replace(params, max_tokens=None))
    while sequence.pending != 1 or not sequence.completion_tokens:
        engine.step()
    times, end = [], perf_counter() + TURN
    while (begin := perf_counter()) < end and len(times) < engine.context_length - PROMPT - 2:
        engine.step()
        times.append(perf_counter() - begin)
    engine.cancel(sequence)
    return median(times)


def turn(runs: Runs) -> float:
    """Seconds of a decode step: the median of a turn's."""
    times, end = [], perf_counter() + TURN
    while (begin := perf_counter()) < end:
        runs.phase("decode")
        times.append(perf_counter() - begin)
    return median(times)


def print_table(head: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Converted models; default: the bundled tiny-r1.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement.")] = 15,
    threads: Annotated[str, typer.Option(help="Comma-separated.")] = "1,2",
    child_of: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Compare a profile with perf, and measure what it costs."""
    counts = [int(n) for n in threads.split(",")]
    if child_of is not None:
        assert paths
        print(json.dumps(child(paths[0], child_of, counts[0], seconds)))
        return
    build()
    with TemporaryDirectory() as folder:
        if not paths:
            paths = [deepmnn.convert(bundled_checkpoint(), Path(folder) / "tiny-r1").path]
        for path in paths:
            rows = []
            for phase in ("prefill", "decode"):
                for n in counts:
                    rows += looked_at(path, phase, n, seconds)
            print(f"\n{path.name}")
            print_table(["phase", "threads", "op", "profile", "perf", "points"], rows)
        cores = [overhead(path, n, seconds) for path in paths for n in counts]
        engines = [engine_overhead(path, n, seconds) for path in paths for n in counts]
    print_table(["core", "threads", "decode step, µs", "with counts", "with spans"], cores)
    print_table(["engine", "threads", "decode step, µs", "profiled"], engines)


if __name__ == "__main__":
    typer.run(main)
