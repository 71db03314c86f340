"""What Prometheus reads at /metrics: vLLM's names, so that its dashboards work, and a few of ours.

Counts grow with the events of the engine; how full it is, is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from deepmnn.serve.lifecycle import Lifecycle

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_FIRST = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_LENGTHS = tuple(2**power for power in range(18))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside every count

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        name: of the model, the label `model_name`.
        lifecycle: whose engine is looked at.
    """

    def __init__(self, name: str, lifecycle: Lifecycle) -> None:
        self._name, self._lifecycle = name, lifecycle
        self._registry = CollectorRegistry()
        self._gauges()
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.queries = self._counter(
            "vllm:prefix_cache_queries", "Tokens of prompts that were looked for in the cache."
        )
        self.hits = self._counter("vllm:prefix_cache_hits", "Tokens that were found there.")
        self.preemptions = self._counter(
            "vllm:num_preemptions", "Answers that gave their cache back and were run again."
        )
        self._success = Counter(
            "vllm:request_success",
            "Answers that have ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From the request to the first token.", _FIRST
        )
        self.inter_token_latency = self._histogram(
            "vllm:inter_token_latency_seconds", "From one token to the next.", _SECONDS
        )
        self.e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "From the request to the last token.", _SECONDS
        )
        self.queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "From the request to its first step.", _SECONDS
        )
        self.prefill_time = self._histogram(
            "vllm:request_prefill_time_seconds", "From that to the first token.", _SECONDS
        )
        self.decode_time = self._histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", _SECONDS
        )
        self.request_prompt_tokens = self._histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt.", _LENGTHS
        )
        self.request_generation_tokens = self._histogram(
            "vllm:request_generation_tokens", "Tokens of an answer.", _LENGTHS
        )
        self.step_time = self._histogram(
            "deepmnn:step_seconds", "Of one run of the model over a batch.", _SECONDS
        )
        self.batch_size = self._histogram(
            "deepmnn:batch_sequences", "Answers that a step advances.", _BATCHES
        )
        self.batch_tokens = self._histogram("deepmnn:batch_tokens", "Tokens of a step.", _LENGTHS)

    def finished(self, reason: str) -> None:
        """An answer has ended; reason is a `Chunk.finish_reason`, or "error"."""
        word = "abort" if reason == "cancelled" else reason
        self._success.labels(self._name, word).inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _gauges(self) -> None:
        for name, text, read in (
            ("vllm:num_requests_running", "Answers that run.", self._running),
            ("vllm:num_requests_waiting", "Answers that wait for room.", self._waiting),
            ("vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", self._usage),
            ("deepmnn:active_answers", "Answers under way, tokenising included.", self._active),
            ("deepmnn:cache_blocks", "Blocks of the KV cache.", self._blocks),
            ("deepmnn:cache_blocks_free", "Blocks that no answer holds.", self._free_blocks),
        ):
            gauge = Gauge(name, text, ["model_name"], registry=self._registry)
            gauge.labels(self._name).set_function(read)

    def _running(self) -> float:
        return self._read(lambda service: len(service.model.driver.engine.scheduler.running))

    def _waiting(self) -> float:
        return self._read(lambda service: len(service.model.driver.engine.scheduler.waiting))

    def _active(self) -> float:
        return self._read(lambda service: service.active)

    def _blocks(self) -> float:
        return self._read(lambda service: service.model.driver.engine.cache.blocks)

    def _free_blocks(self) -> float:
        return self._read(lambda service: service.model.driver.engine.manager.free_blocks)

    def _usage(self) -> float:
        blocks = self._blocks()
        return 1 - self._free_blocks() / blocks if blocks else 0.0

    def _read(self, fact: Callable[..., float]) -> float:
        """A number of the engine's, which another thread may change meanwhile; 0 without one."""
        service = self._lifecycle.current
        return 0.0 if service is None else fact(service)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(name, text, ["model_name"], registry=self._registry)
        return counter.labels(self._name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(name, text, ["model_name"], registry=self._registry, buckets=buckets)
        return made.labels(self._name)
