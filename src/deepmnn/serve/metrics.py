"""What Prometheus reads at /metrics: vLLM's names, so that its dashboards work, and a few of ours.

Counts grow with each event of an answer and each step of the engine; how full the engine is, is
read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from deepmnn.engine.completion import Chunk
from deepmnn.engine.engine import Engine, Step
from deepmnn.engine.kv_disk import KvDisk
from deepmnn.engine.request import Event, Failure
from deepmnn.serve.log import Record, current
from deepmnn.serve.service import Service

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside every count

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10)
_LONG = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_COUNTS = tuple(2**power for power in range(18))

_COUNTERS = {
    "vllm:prompt_tokens": "Tokens of prompts.",
    "vllm:generation_tokens": "Tokens that were generated.",
    "vllm:prefix_cache_queries": "Tokens of prompts that were looked for in the prefix cache.",
    "vllm:prefix_cache_hits": "Tokens of prompts that were found in the prefix cache.",
    "vllm:spec_decode_num_drafts": "Guesses ahead: one for each answer and step that has any.",
    "vllm:spec_decode_num_draft_tokens": "Tokens that were guessed ahead.",
    "vllm:spec_decode_num_accepted_tokens": "Tokens guessed ahead that were right.",
}
_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "vllm:time_to_first_token_seconds": ("Time from the request to the first token.", _LONG),
    "vllm:inter_token_latency_seconds": ("Time from one token of an answer to the next.", _SHORT),
    "vllm:e2e_request_latency_seconds": ("Time from the request to the last token.", _LONG),
    "vllm:request_queue_time_seconds": ("Time that a request waits for its first step.", _LONG),
    "vllm:request_prefill_time_seconds": (
        "Time from a request's first step to the first token.",
        _LONG,
    ),
    "vllm:request_decode_time_seconds": (
        "Time from the first token of an answer to the last.",
        _LONG,
    ),
    "vllm:request_prompt_tokens": ("Tokens of a prompt.", _COUNTS),
    "vllm:request_generation_tokens": ("Tokens of an answer.", _COUNTS),
    "deepmnn:step_seconds": ("Time of one step: one run of the model over a batch.", _SHORT),
    "deepmnn:step_answers": ("Answers that a step advances.", _COUNTS),
    "deepmnn:step_prompt_tokens": ("Tokens of prompts that a step runs.", (0, *_COUNTS)),
}
_GAUGES: dict[str, tuple[str, Callable[[Engine], float]]] = {
    "vllm:num_requests_running": ("Answers that run.", lambda e: len(e.scheduler.running)),
    "vllm:num_requests_waiting": (
        "Answers that wait for room.",
        lambda e: len(e.scheduler.waiting),
    ),
    "vllm:kv_cache_usage_perc": (
        "Share of the KV cache that answers hold, 0 to 1.",
        lambda e: 1 - e.manager.free_blocks / e.cache.blocks,
    ),
    "deepmnn:cache_blocks": ("Blocks of the KV cache.", lambda e: e.cache.blocks),
    "deepmnn:cache_blocks_free": (
        "Blocks of the KV cache that no answer holds.",
        lambda e: e.manager.free_blocks,
    ),
    "deepmnn:kv_disk_blocks": (
        "Blocks of the KV cache that the disk has room for.",
        lambda e: e.manager.disk.capacity if e.manager.disk is not None else 0,
    ),
    "deepmnn:kv_disk_blocks_used": (
        "Blocks of the KV cache that lie on the disk.",
        lambda e: len(e.manager.disk) if e.manager.disk is not None else 0,
    ),
}
_DISK_COUNTERS: dict[str, tuple[str, Callable[[KvDisk], int]]] = {
    "deepmnn:kv_disk_blocks_written": (
        "Blocks of the KV cache written to the disk.",
        lambda d: d.written,
    ),
    "deepmnn:kv_disk_blocks_read": (
        "Blocks of the KV cache that came back from the disk.",
        lambda d: d.read,
    ),
    "deepmnn:kv_disk_blocks_lost": (
        "Blocks that were damaged on the disk or could not be read, and are run again.",
        lambda d: d.lost,
    ),
    "deepmnn:kv_disk_blocks_unwritten": (
        "Blocks that were forgotten, because the disk failed or has no place for them.",
        lambda d: d.unwritten,
    ),
}


class Metrics:
    """The metrics of one server, in a registry of their own.

    name: of the model, the label `model_name`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._service: Service | None = None
        self._registry = CollectorRegistry()
        self.counters = {key: self._made(Counter, key, text) for key, text in _COUNTERS.items()}
        self.histograms = {
            key: self._made(Histogram, key, text, buckets=buckets)
            for key, (text, buckets) in _HISTOGRAMS.items()
        }
        for key, (text, read) in _GAUGES.items():
            self._made(Gauge, key, text).set_function(self._reader(read))
        active = self._made(Gauge, "deepmnn:answers", "Answers under way, their prompts included.")
        active.set_function(lambda: self._service.active if self._service else 0)
        self._registry.register(_DiskCounters(self))
        ProcessCollector(registry=self._registry)
        self._responses = Counter(
            "deepmnn:http_responses", "Answers over HTTP.", ["status"], registry=self._registry
        )
        labels = ["model_name", "finished_reason"]
        self._ended = Counter(
            "vllm:request_success", "Answers that have ended.", labels, registry=self._registry
        )

    def attach(self, service: Service) -> None:
        """Counts what this service does from now on."""
        self._service = service
        service.watch = lambda: _Watch(self, current.get())
        service.model.driver.engine.watch = self._step

    def responded(self, status: int) -> None:
        """A request has got this status of HTTP."""
        self._responses.labels(str(status)).inc()

    def ended(self, reason: str) -> None:
        """An answer has ended. reason: a `Chunk.finish_reason`, or "error"."""
        word = "abort" if reason == "cancelled" else reason
        self._ended.labels(self.name, word).inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    @property
    def disk(self) -> KvDisk | None:
        """Where cache blocks go that make room; None without one."""
        return self._service.model.driver.engine.manager.disk if self._service else None

    def _step(self, step: Step) -> None:
        """Called on the engine's thread."""
        self.histograms["deepmnn:step_seconds"].observe(step.seconds)
        self.histograms["deepmnn:step_answers"].observe(step.answers)
        self.histograms["deepmnn:step_prompt_tokens"].observe(step.prompt_tokens)
        if step.guessing:
            self.counters["vllm:spec_decode_num_drafts"].inc(step.guessing)
            self.counters["vllm:spec_decode_num_draft_tokens"].inc(step.drafted_tokens)
            self.counters["vllm:spec_decode_num_accepted_tokens"].inc(step.accepted_tokens)

    def _reader(self, read: Callable[[Engine], float]) -> Callable[[], float]:
        """Reads a number of the engine's, which its thread may change meanwhile; 0 without one."""
        return lambda: read(self._service.model.driver.engine) if self._service else 0.0

    def _made(self, kind: Callable[..., Any], key: str, text: str, **more: Any) -> Any:
        made = kind(key, text, ["model_name"], registry=self._registry, **more)
        return made.labels(self.name)


class _DiskCounters(Collector):
    """What the disk for the KV cache has counted itself, read when somebody asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[CounterMetricFamily]:
        """A counter for each number."""
        disk = self._metrics.disk
        for key, (text, read) in _DISK_COUNTERS.items():
            family = CounterMetricFamily(key, text, labels=["model_name"])
            family.add_metric([self._metrics.name], read(disk) if disk is not None else 0)
            yield family


class _Watch:
    """Counts the events of the answers to one prompt, and adds them to the request's record."""

    def __init__(self, metrics: Metrics, record: Record | None) -> None:
        self._metrics, self._record = metrics, record or Record("", "")
        self._last: dict[tuple[int, int], float] = {}
        """Prompt and choice → seconds from its first token to its newest."""

    def __call__(self, event: Event) -> None:
        """Called with each event, on the event loop."""
        if isinstance(event, Failure):
            self._metrics.ended("error")
            self._record.finish_reasons.append("error")
            return
        if event.ids:
            self._tokens(event)
        if event.finish_reason is not None:
            self._end(event, event.finish_reason)

    def _tokens(self, chunk: Chunk) -> None:
        histograms, counters = self._metrics.histograms, self._metrics.counters
        answer = chunk.index, chunk.choice
        before = self._last.get(answer)
        self._last[answer] = chunk.decode_seconds
        counters["vllm:generation_tokens"].inc(len(chunk.ids))
        self._record.completion_tokens += len(chunk.ids)
        if before is not None:
            latency = chunk.decode_seconds - before
            histograms["vllm:inter_token_latency_seconds"].observe(latency)
            return
        histograms["vllm:time_to_first_token_seconds"].observe(chunk.prefill_seconds)
        if chunk.choice == 0:  # the others have the same prompt
            self._prompt(chunk)

    def _prompt(self, chunk: Chunk) -> None:
        counters, record = self._metrics.counters, self._record
        counters["vllm:prompt_tokens"].inc(chunk.prompt_tokens)
        counters["vllm:prefix_cache_queries"].inc(chunk.prompt_tokens)
        counters["vllm:prefix_cache_hits"].inc(chunk.cached_tokens)
        record.prompt_tokens += chunk.prompt_tokens
        record.cached_tokens += chunk.cached_tokens
        record.first_seconds = record.first_seconds or chunk.prefill_seconds

    def _end(self, chunk: Chunk, reason: str) -> None:
        self._metrics.ended(reason)
        self._record.finish_reasons.append(reason)
        self._record.drafted_tokens += chunk.drafted_tokens
        self._record.accepted_tokens += chunk.accepted_tokens
        if not chunk.completion_tokens:  # cancelled before it began
            return
        for key, value in (
            ("e2e_request_latency_seconds", chunk.prefill_seconds + chunk.decode_seconds),
            ("request_queue_time_seconds", chunk.queue_seconds),
            ("request_prefill_time_seconds", chunk.prefill_seconds - chunk.queue_seconds),
            ("request_decode_time_seconds", chunk.decode_seconds),
            ("request_prompt_tokens", chunk.prompt_tokens),
            ("request_generation_tokens", chunk.completion_tokens),
        ):
            self._metrics.histograms[f"vllm:{key}"].observe(value)
