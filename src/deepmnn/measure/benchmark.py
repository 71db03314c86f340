"""Speed of a model on this machine, and its share of the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.errors import ContextLengthError, RequestError, Words, argument
from deepmnn.graph.workload import Workload

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM


LIMITS_NBYTES = 520 << 20
"""What it takes to measure the limits of a machine."""

BATCHES = (1, 4, 16)
"""Batch sizes that are measured by default."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second over the repetitions, and their standard deviation."""

    mean: float
    sd: float

    @staticmethod
    def of(tokens: int, seconds: Sequence[float]) -> Speed:
        """From the wall times of equal runs."""
        rates = [tokens / time for time in seconds]
        return Speed(fmean(rates), stdev(rates) if len(rates) > 1 else 0.0)


@dataclass(frozen=True)
class Machine:
    """Measured limits: bytes per second read from memory, multiply-accumulates per second."""

    threads: int
    isa: str
    read_bandwidth: float
    int8_macs: float
    f32_macs: float


@dataclass(frozen=True)
class Row:
    """One prompt length and batch size.

    The shares (0 to 1) compare with the machine's limits: prefill's multiply-accumulates with the
    int8 peak, decode's bytes read with the read bandwidth and its multiply-accumulates with the
    int8 peak; None when the limits are unknown. Busy is the share of the threads' time in which
    they work; None where the backend does not measure it.
    """

    prompt_tokens: int
    new_tokens: int
    batch: int
    prefill: Speed
    decode: Speed
    prefill_macs_share: float | None
    decode_bandwidth_share: float | None
    decode_macs_share: float | None
    prefill_busy: float | None = None
    decode_busy: float | None = None


@dataclass(frozen=True)
class Report:
    """All rows; machine is None for the reference backend."""

    machine: Machine | None
    rows: list[Row]


def benchmark(
    model: LLM,
    prompt_tokens: Sequence[int] = (128, 512),
    new_tokens: int = 64,
    batch: Sequence[int] | None = None,
    repeat: int = 5,
    progress: Callable[[str], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
    machine: Machine | None = None,
) -> Report:
    """Times prefill and decode of random prompts, after one warm-up run of each shape.

    batch: how many prompts run together; None takes those of BATCHES that the backend allows.
    progress: called with what is measured next. on_row: called with each row when it is measured.
    machine: its limits, where they were measured before the model was loaded.

    Raises RequestError for impossible counts and for larger batches than the backend allows,
    ContextLengthError when a shape does not fit.
    """
    batch = _batches(model, batch)
    for name, values in {"prompt_tokens": prompt_tokens, "batch": batch}.items():
        if not values or min(values) < 1:
            raise RequestError(argument(name, f" is {list(values)}"), "positive counts")
    if new_tokens < 1 or repeat < 1:
        raise RequestError(f"new_tokens {new_tokens}, repeat {repeat}", "positive counts")
    needed = max(prompt_tokens) + new_tokens
    if needed > model.engine.context_length:
        raise ContextLengthError(
            f"{needed} tokens per sequence", f"at most {model.engine.context_length}"
        )
    if progress:
        progress("the machine's limits")
    machine = machine or measure_machine(model)
    workload = workload_of(model)
    rows = []
    for prompt in prompt_tokens:
        for size in batch:
            times = []
            for seed in range(repeat + 1):
                if progress:
                    run = f"run {seed} of {repeat}" if seed else "warming up"
                    progress(f"{size} × {prompt}, {run}")
                times.append(time_run(model, prompt, new_tokens, size, seed))
            if progress:
                progress(f"{size} × {prompt}, busy threads")
            busy = _busy(model, prompt, new_tokens, size, repeat + 1)
            prefills, decodes = zip(*times[1:], strict=True)
            prefill = Speed.of(size * prompt, prefills)
            decode = Speed.of(size * new_tokens, decodes)
            shares = _shares(model, machine, workload, prompt, new_tokens, size, prefill, decode)
            rows.append(Row(prompt, new_tokens, size, prefill, decode, *shares, *busy))
            if on_row:
                on_row(rows[-1])
    return Report(machine, rows)


def _batches(model: LLM, batch: Sequence[int] | None) -> Sequence[int]:
    """The batch sizes to measure. Raises RequestError."""
    most = model.backend.max_sequences
    if most is None:
        return BATCHES if batch is None else batch
    if batch is None:
        return [size for size in BATCHES if size <= most]
    if max(batch, default=0) > most:
        raise RequestError(
            f"batches of {list(batch)}",
            f"at most {most}: this backend has no batching",
            Words("Leave batch out.", "Leave --batch out."),
        )
    return batch


def time_run(
    model: LLM,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    seed: int,
    between: Callable[[], None] | None = None,
) -> tuple[float, float]:
    """Seconds of prefill and of decode for `batch` random prompts that run together.

    Nothing else runs meanwhile. between: called after prefill; its time is not counted.
    """
    interrupted = Event()

    def run(engine: Engine) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        vocab = engine.backend.vocab_size
        prompts = rng.integers(0, vocab, (batch, prompt_tokens)).tolist()
        tables = [BlockTable(ids) for ids in prompts]
        try:
            start = perf_counter()
            engine.run_pending(tables, interrupted.is_set)
            prefill = perf_counter() - start
            if between:
                between()
            middle = perf_counter()
            for _ in range(new_tokens):
                for table in tables:
                    table.ids.append(int(rng.integers(vocab)))
                engine.run_pending(tables, interrupted.is_set)
            return prefill, perf_counter() - middle
        finally:
            for table in tables:
                engine.manager.free(table)

    try:
        return model.driver.run(run)
    except BaseException:
        interrupted.set()  # nobody waits for the rest
        raise


def _busy(
    model: LLM, prompt_tokens: int, new_tokens: int, batch: int, seed: int
) -> tuple[float | None, float | None]:
    """The busy share of the threads, 0 to 1, in prefill and in decode; None where the backend does
    not count. It takes a run of its own, so that counting slows no run that is timed.
    """
    from deepmnn.backends.cpu.backend import CpuBackend
    from deepmnn.backends.cpu.counts import Counts

    if not isinstance(model.backend, CpuBackend):
        return None, None
    core, shares = model.backend.model, list[float]()

    def share() -> None:
        counts = Counts.take(core)
        worked = float((counts.busy + counts.stealing).sum())
        shares.append(worked / (worked + float(counts.waiting.sum())))

    core.start_profile()
    try:
        time_run(model, prompt_tokens, new_tokens, batch, seed, share)
        share()
    finally:
        core.stop_profile()
    return shares[0], shares[1]


def measure_machine(model: LLM) -> Machine | None:
    """This machine's limits with the model's threads and instruction set (about a second).

    MNN does not tell its instruction set: the limit is that of the machine's best one. None for the
    reference backend, and for weights that are streamed: what it measures with is in no budget.
    """
    from deepmnn import _core
    from deepmnn.backends.cpu.backend import CpuBackend
    from deepmnn.backends.mnn.backend import MnnBackend

    if model.is_streamed:
        return None
    if isinstance(model.backend, CpuBackend):
        threads, isa = model.backend.model.threads, model.backend.model.isa
    elif isinstance(model.backend, MnnBackend):
        threads, isa = model.backend.threads, _core.isas()[0]
    else:
        return None
    return limits(threads, isa)


def limits(threads: int, isa: str) -> Machine:
    """This machine's, with so many threads and an instruction set. Takes LIMITS_NBYTES."""
    from deepmnn import _core

    bandwidth = float(_core.measure_read_bandwidth(threads))
    int8 = float(_core.measure_int8_peak(threads, isa))
    return Machine(threads, isa, bandwidth, int8, float(_core.measure_f32_peak(threads, isa)))


def workload_of(model: LLM) -> Workload:
    """What a token costs."""
    from deepmnn.artifact.reader import Artifact
    from deepmnn.backends.mnn.backend import MnnBackend
    from deepmnn.exporters.mnn.cached import exported_model
    from deepmnn.exporters.mnn.folder import MnnFolder

    if not isinstance(model.artifact, Artifact):
        return model.artifact.workload
    if isinstance(model.backend, MnnBackend):
        with exported_model(model.artifact) as kept:
            return MnnFolder.open(kept.path).workload
    return Workload.of(model.artifact.graph())


def _shares(
    model: LLM,
    machine: Machine | None,
    workload: Workload,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    prefill: Speed,
    decode: Speed,
) -> tuple[float | None, float | None, float | None]:
    if machine is None:
        return None, None, None
    prefill_seconds = batch * prompt_tokens / prefill.mean
    step_tokens = model.engine.scheduler.max_batch_tokens
    prefill_macs = workload.prefill_macs([prompt_tokens] * batch, step_tokens)
    context = prompt_tokens + new_tokens / 2
    steps_per_second = decode.mean / batch
    element = model.kv_bytes_per_token // max(1, workload.cache_width)
    decode_nbytes = workload.decode_nbytes(batch, context, element)
    return (
        prefill_macs / prefill_seconds / machine.int8_macs,
        decode_nbytes * steps_per_second / machine.read_bandwidth,
        workload.macs(batch, context, batch) * steps_per_second / machine.int8_macs,
    )
