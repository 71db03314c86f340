"""How fast a model runs whose weights are partly read from the disk: the physics, in one place.

A step takes

    max(bytes missed / disk bandwidth, compute) + what does not overlap

Bytes missed in decode, a token:

    sum over layers of experts a token uses x (1 - hit share) x bytes of an expert
    + dense bytes that every step reads again + the row of the embedding table

and in prefill, a step of T tokens: each expert that one of them uses, once, unless it is cached,
and the same rest. Before the first prompt no expert is cached, and the memory for them is fresh:
the system clears it, or gets it from a host.

No expert is read before the first layer of experts, nor after the last one: what these compute
does not overlap.

Assumed: a token finds its experts in the cache as often as with a trained mixture (HIT_SHARES; a
model's own rate is better: measure it, and give it as the hit rate); many tokens choose evenly, so
that they find the share that is cached; an expert's second half is read while its first is
multiplied, so that only the first read after a routing waits by itself, for the share of reads that
were not predicted a layer before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deepmnn import _core
from deepmnn.graph.workload import Workload

DECODE_MEMORY_SHARE = 0.75
"""Of the memory's bandwidth that decode reaches (docs/benchmarks.md)."""

DECODE_MACS_SHARE = 0.25
"""Of the int8 peak that a step of one token reaches."""

PREFILL_MACS_SHARE = 0.6
"""Of the int8 peak that prefill reaches."""

STREAMED_READ_SHARE = 0.95
"""Of the disk's bandwidth that streaming reaches, when it is the disk that takes the time."""

READ_COMPUTE = 14e9
"""Bytes read for each second that they take from compute: the system's work, and memory that both
use."""

PREDICTED = 0.4
"""Share of a layer's missing experts that is asked for while the layer before it computes."""

HIT_SHARES = (
    (0.0, 0.0), (0.05, 0.32), (0.1, 0.52), (0.2, 0.73), (0.4, 0.92), (0.6, 0.98), (1.0, 1.0),
)  # fmt: skip
"""The share of the experts that is cached, and the share of a token's experts found there: a
trained mixture of 128 experts a layer in the engine's cache (docs/log.md).
"""

_TABLE_ROWS = 16
"""A table is read in blocks of rows."""


@dataclass(frozen=True)
class Speeds:
    """Of a machine: bytes per second of disk, memory and memory that is touched for the first time;
    seconds of a small read by itself; and multiply-accumulates per second, all threads together.
    """

    disk: float
    latency: float
    memory: float
    int8_macs: float
    fresh: float = float("inf")


@dataclass(frozen=True)
class Step:
    """What one step takes, in bytes and seconds.

    Attributes:
        tokens: that it runs.
        missed: bytes from the disk.
        disk: seconds for those.
        compute: seconds of everything else.
        exposed: seconds that nothing overlaps.
    """

    tokens: int
    missed: float
    disk: float
    compute: float
    exposed: float

    @property
    def seconds(self) -> float:
        """Wall time."""
        return max(self.disk, self.compute) + self.exposed

    @property
    def tokens_per_second(self) -> float:
        """Speed."""
        return self.tokens / self.seconds


def cached_share(weights: _core.WeightPlan) -> float:
    """Of all experts, those that are in memory."""
    if weights.mapped or not weights.expert_nbytes:
        return 1.0
    return min(1.0, weights.cache_nbytes / weights.expert_nbytes)


def hit_share(weights: _core.WeightPlan) -> float:
    """Of the experts that a token uses, those that are in memory."""
    cached, hits = zip(*HIT_SHARES, strict=True)
    return float(np.interp(cached_share(weights), cached, hits))


def decode_step(
    workload: Workload,
    weights: _core.WeightPlan,
    speeds: Speeds,
    context: int,
    kv_element_nbytes: float,
    hit_rate: float | None = None,
) -> Step:
    """One token of one sequence, after `context` rows. hit_rate: measured; None: `hit_share`."""
    hit = hit_share(weights) if hit_rate is None or weights.mapped else hit_rate
    missed = 0.0
    if not weights.mapped:
        missed = (1 - hit) * sum(layer.top_k * layer.nbytes for layer in workload.experts)
        missed += weights.streamed_nbytes + _TABLE_ROWS * workload.embedding_nbytes
    read = workload.decode_nbytes(1, context, 0) + workload.cache_read(context) * kv_element_nbytes
    macs = workload.macs(1, context, 1)
    compute = max(
        read / (DECODE_MEMORY_SHARE * speeds.memory), macs / (DECODE_MACS_SHARE * speeds.int8_macs)
    )
    outside = compute * workload.outside_nbytes / read
    waits = 0.0
    if not weights.mapped:
        for layer in workload.experts:
            surprises = layer.top_k * (1 - hit) * (1 - PREDICTED)
            waits += min(1.0, surprises) * (speeds.latency + layer.nbytes / speeds.disk)
    disk = missed / (STREAMED_READ_SHARE * speeds.disk)
    # Where the disk takes the time anyway, a read that waits is one of those that count already.
    return _step(1, missed, disk, compute, outside, waits * compute / (disk + compute))


def prefill_step(
    workload: Workload,
    weights: _core.WeightPlan,
    speeds: Speeds,
    tokens: int,
    step_tokens: int,
    first: bool,
) -> Step:
    """A prompt of so many tokens, in steps of step_tokens; first: nothing has run before it."""
    missed = 0.0
    if not weights.mapped:
        for start in range(0, tokens, step_tokens):
            hit = 0.0 if first and start == 0 else cached_share(weights)
            here = min(step_tokens, tokens - start)
            for layer in workload.experts:
                used = 1 if layer.wanted else here
                missed += (1 - hit) * layer.touched(used) * layer.nbytes
            missed += weights.streamed_nbytes
    macs = workload.prefill_macs([tokens], step_tokens)
    compute = macs / (PREFILL_MACS_SHARE * speeds.int8_macs)
    outside = tokens * workload.outside_macs / (PREFILL_MACS_SHARE * speeds.int8_macs)
    disk = missed / (STREAMED_READ_SHARE * speeds.disk)
    if first:
        disk += min(missed, weights.cache_nbytes) / speeds.fresh
    return _step(tokens, missed, disk, compute, outside, len(workload.experts) * speeds.latency)


def _step(
    tokens: int, missed: float, disk: float, compute: float, outside: float, waits: float
) -> Step:
    """outside: seconds of compute that no read overlaps."""
    if not missed:
        return Step(tokens, missed, 0.0, compute, 0.0)
    compute += missed / READ_COMPUTE
    apart = outside + max(disk, compute - outside) - max(disk, compute)
    return Step(tokens, missed, disk, compute, apart + waits)
