"""The time of a decode step outside the core: schedule, batch, binding, sample, detokenise.

    python bench/overhead.py [MODEL ...]

Prints a Markdown table for tiny-r1 and every converted model given. All figures are microseconds
per engine step, from the beginning of one to that of the next. A first run measures the step:
"core" is the time inside the C++ core's step, "overhead" all other time. A second run times the
parts of the overhead; "rest" is the remainder. A model without a tokenizer has nothing to
detokenise.

A disturbance makes a step longer, never shorter: every figure is the 10th percentile of all steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from statistics import quantiles
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer

import deepmnn
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.engine import engine as engine_module
from deepmnn.engine.kv_cache import BlockManager
from deepmnn.engine.request import Event, Request, result_of
from deepmnn.engine.sampler import Sampler
from deepmnn.engine.scheduler import Scheduler
from deepmnn.engine.sequence import Sequence
from deepmnn.text.stream import TextStream

PROMPT_TOKENS, WARM_UP = 32, 8
BATCHES = [1, 4, 16]
WAYS = {
    "greedy": deepmnn.SamplingParams(ignore_eos=True),
    "top_p": deepmnn.SamplingParams(temperature=0.6, top_p=0.95, seed=0, ignore_eos=True),
}
PARTS = {
    "schedule": [(Scheduler, "schedule"), (BlockManager, "commit")],
    "batch": [(engine_module, "make_batch")],
    "call": [(CpuBackend, "step")],
    "sample": [(Sampler, "draw"), (CpuBackend, "sample")],
    "detokenise": [(TextStream, "push")],
}


@dataclass(frozen=True)
class Step:
    """Seconds of one step: wall time, in the core, and in each part."""

    total: float
    core: float
    parts: dict[str, float]


def run(model: deepmnn.LLM, batch: int, steps: int, way: str, spent: Counter[str]) -> list[Step]:
    """Times decode steps of `batch` answers to random prompts; `spent`: where parts add up."""
    engine = model.engine
    assert isinstance(engine.backend, CpuBackend)
    core, step = engine.backend.model, engine.step
    marks: list[tuple[float, float, dict[str, float]]] = []

    def marked() -> list[Sequence]:
        marks.append((perf_counter(), core.step_seconds, dict(spent)))
        return step()

    prefills = -(-batch * PROMPT_TOKENS // max(1, engine.scheduler.max_batch_tokens - batch))
    tokens = prefills + WARM_UP + steps + 1  # the first answer to end is longer than is measured
    if PROMPT_TOKENS + tokens > engine.context_length:
        raise engine.too_long(f"{steps} steps take {PROMPT_TOKENS + tokens} tokens")
    with patch.object(engine, "step", marked):
        answer(model, batch, replace(WAYS[way], max_tokens=tokens))
    first = len(marks) - tokens + 1 + WARM_UP  # counted from the step that ended the last prompt
    return [
        Step(end - start, core_end - core_start, {p: there[p] - here.get(p, 0.0) for p in there})
        for (start, core_start, here), (end, core_end, there) in pairwise(
            marks[first : first + steps + 1]
        )
    ]


def answer(model: deepmnn.LLM, batch: int, params: deepmnn.SamplingParams) -> None:
    """Answers random prompts, side by side, for somebody who waits for their ends."""
    driver, ended = model.driver, SimpleQueue[Event]()
    rng = np.random.default_rng(0)
    requests = []
    for prompt in rng.integers(0, model.vocab_size, (batch, PROMPT_TOKENS)).tolist():
        output = TextStream(model.tokenizer, (), False) if model.has_tokenizer else None
        sequence = driver.engine.sequence(prompt, params, output)
        requests.append(Request(sequence, ended.put, whole=True))
    driver.submit(requests)
    for _ in requests:
        result_of(ended.get())


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """While open, adds up the seconds spent in each part."""
    spent: Counter[str] = Counter()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = function(*args, **kwargs)
            spent[part] += perf_counter() - start
            return result

        return call

    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        yield spent


def typical(seconds: Iterable[float]) -> float:
    """The 10th percentile, in microseconds."""
    return quantiles(seconds, n=10)[0] * 1e6


def row(name: str, model: deepmnn.LLM, batch: int, steps: int, way: str) -> list[str]:
    """One line of the table."""
    plain = run(model, batch, steps, way, Counter())
    total, core = (typical(getattr(s, name) for s in plain) for name in ("total", "core"))
    overhead = typical(s.total - s.core for s in plain)
    with watched() as spent:
        seen = run(model, batch, steps, way, spent)
    parts = {part: typical(s.parts.get(part, 0.0) for s in seen) for part in PARTS}
    parts["call"] = typical(s.parts["call"] - s.core for s in seen)
    numbers = [total, core, overhead, *parts.values(), overhead - sum(parts.values())]
    share = f"{overhead / total:.1%}"
    return [name, way, str(batch), *(f"{number:.0f}" for number in numbers), share]


def main(
    models: Annotated[list[Path] | None, typer.Argument(help="Converted models.")] = None,
    batch: Annotated[list[int], typer.Option(min=1, help="Answers that run together.")] = BATCHES,
    steps: Annotated[int, typer.Option(min=2, help="Steps to time.")] = 400,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
) -> None:
    """Measure and print the table."""
    header = ["model", "sampling", "batch", "total", "core", "overhead", *PARTS, "rest", "share"]
    print("| " + " | ".join(header) + " |")
    print("|---|---|" + "--:|" * (len(header) - 2))
    for path in [bundled_checkpoint(), *(models or [])]:
        model = deepmnn.load(path, "cpu", threads, speculate="off")
        name = "tiny-r1" if path == bundled_checkpoint() else path.name
        for way in WAYS:
            for size in batch:
                print("| " + " | ".join(row(name, model, size, steps, way)) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
