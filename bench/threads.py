"""How speed depends on threads: more of them than cores, a busy core, odd prompt lengths.

    python bench/threads.py [MODEL] --seconds 120

Prints Markdown. Every round measures each setting once, until the time is up, so that other load on
the machine affects all settings alike; every figure is the median of its rounds. Needs Linux.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

import deepmnn
from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.counts import Counts
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.measure.benchmark import time_run

LENGTHS = (509, 511, 512, 513, 521)
"""Prompts around a round number; 509 and 521 are primes."""

PROMPT, NEW_TOKENS = 512, 48

BUSY_LOOP = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100000):
        pass
"""
"""Ends by itself when the benchmark is killed."""


@contextmanager
def busy_core() -> Iterator[None]:
    """Runs a process that keeps the last core of this process busy."""
    cpu = str(max(os.sched_getaffinity(0)))
    with subprocess.Popen([sys.executable, "-c", BUSY_LOOP, cpu]) as process:
        try:
            yield
        finally:
            process.kill()


def speeds(model: deepmnn.LLM, prompt: int, seed: int) -> tuple[float, float]:
    """Prefill and decode of one run, in tokens per second."""
    prefill, decode = time_run(model, prompt, NEW_TOKENS, 1, seed)
    return prompt / prefill, NEW_TOKENS / decode


class Measured:
    """Setting → its figures, one for each round."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.figures: dict[Any, list[Sequence[float]]] = defaultdict(list)

    def rounds(self) -> Iterator[int]:
        """Round numbers: at least three, then as many as there is time for."""
        start, number = perf_counter(), 0
        while number < 3 or perf_counter() - start < self.seconds:
            yield number
            number += 1

    def medians(self, setting: Any) -> list[float]:
        """One for each column."""
        return [median(column) for column in zip(*self.figures[setting], strict=True)]


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def thread_counts(models: dict[int, deepmnn.LLM], prompt: int, seconds: float) -> None:
    """Prefill and decode by number of threads, alone and beside a process that fills a core."""
    alone, beside = Measured(seconds / 2), Measured(seconds / 2)
    for seed in alone.rounds():
        for threads, model in models.items():
            alone.figures[threads].append(speeds(model, prompt, seed))
    with busy_core():
        for seed in beside.rounds():
            for threads, model in models.items():
                beside.figures[threads].append(speeds(model, prompt, seed))
    print_table(
        f"Threads, prompt {prompt}: tok/s, and beside a process that keeps one core busy",
        ("threads", "prefill", "decode", "prefill beside", "decode beside"),
        [[str(n), *(f"{x:.0f}" for x in alone.medians(n) + beside.medians(n))] for n in models],
    )


def prompt_lengths(model: deepmnn.LLM, lengths: Sequence[int], seconds: float) -> None:
    """Prefill by number of tokens: odd lengths must cost no more."""
    measured = Measured(seconds)
    for seed in measured.rounds():
        for length in lengths:
            measured.figures[length].append(speeds(model, length, seed)[:1])
    rows = [[str(length), f"{measured.medians(length)[0]:.0f}"] for length in lengths]
    print_table("Prompt lengths, a thread for each core", ("tokens", "prefill tok/s"), rows)


def busy_shares(model: deepmnn.LLM, prompt: int, seconds: float) -> None:
    """The share of the threads' time in which they work, for each op."""
    assert isinstance(model.backend, CpuBackend)
    core = model.backend.model
    prefill, decode = Measured(seconds / 2), Measured(seconds / 2)
    core.start_profile()
    for measured, tokens, new in ((prefill, prompt, 1), (decode, 1, NEW_TOKENS)):
        for seed in measured.rounds():
            core.profile(reset=True)
            time_run(model, tokens, new, 1, seed)
            for op, cost in _costs(core).items():
                measured.figures[op].append(cost)
    core.stop_profile()
    rows = []
    for op in prefill.figures:
        row = [op]
        for measured in (prefill, decode):
            calls, own, total, busy = measured.medians(op)
            row += [f"{own / total:.0%}", f"{1e6 * own / calls:.1f}", f"{busy:.0%}"]
        rows.append(row)
    head = ("op", "prefill time", "µs a call", "busy", "decode time", "µs a call", "busy")
    print_table("Busy threads, a thread for each core", head, rows)


def _costs(core: _core.Model) -> dict[str, tuple[float, float, float, float]]:
    """op → calls, seconds, seconds of all ops, busy share; "all" is the sum."""
    counts, sums = Counts.take(core), defaultdict[str, list[float]](lambda: [0.0, 0.0, 0.0])
    worked = counts.busy + counts.stealing
    for zone, entry in enumerate(core.instructions):
        cost = (counts.calls[zone], counts.seconds[zone], worked[zone])
        for op in (entry["op"], "all"):
            sums[op] = [a + float(b) for a, b in zip(sums[op], cost, strict=True)]
    total = sums["all"][1]
    return {
        op: (calls, seconds, total, busy / (seconds * core.threads))
        for op, (calls, seconds, busy) in sums.items()
        if calls
    }


def main(
    path: Annotated[
        Path | None, typer.Argument(help="A converted model; default: the bundled tiny-r1.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Approximate time to measure.")] = 120,
    threads: Annotated[
        str | None, typer.Option(help="Comma-separated; default: 1, cores, 2 and 4 × cores.")
    ] = None,
) -> None:
    """Measure how speed depends on threads and on other load."""
    cores = _core.available_cores()
    counts = [int(n) for n in threads.split(",")] if threads else [1, cores, 2 * cores, 4 * cores]
    location = path or bundled_checkpoint()
    models = {n: deepmnn.load(location, "cpu", n, cache_tokens=2048) for n in sorted(set(counts))}
    room = min(model.context_length for model in models.values()) - NEW_TOKENS
    prompt = min(PROMPT, room)
    for model in models.values():
        speeds(model, prompt, 0)  # warm
    print(f"{location.name}, {cores} cores, load average {os.getloadavg()[0]:.1f}")
    thread_counts(models, prompt, seconds / 2)
    model = models.get(cores) or next(iter(models.values()))
    prompt_lengths(model, [n for n in LENGTHS if n <= room], seconds / 4)
    busy_shares(model, prompt, seconds / 4)


if __name__ == "__main__":
    typer.run(main)
