"""The physics of streamed weights, term by term against sums of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deepmnn.errors import StorageError
from deepmnn.graph.workload import Experts, Workload
from deepmnn.measure import expected
from deepmnn.measure.disk import measure_disk
from deepmnn.measure.expected import Speeds, decode_step, hit_share, prefill_step

MB = 1_000_000


@dataclass
class Weights:
    """As `_core.WeightPlan` has them."""

    mapped: bool = False
    streamed_nbytes: int = 0
    expert_nbytes: int = 1000 * MB
    cache_nbytes: int = 250 * MB


LAYERS = tuple(Experts(64, 6, 2 * MB, 3e6) for _ in range(10))
LOAD = Workload(
    dense_nbytes=100 * MB, dense_macs=100 * MB, row_macs=MB, context_macs=1000,
    embedding_nbytes=1000, experts=LAYERS, cache_width=100, whole_context_macs=1000, expand_macs=0,
)  # fmt: skip
FAST = Speeds(disk=1e9, latency=0.0, memory=1e15, int8_macs=1e18)


def test_decode_misses_what_is_not_cached() -> None:
    step = decode_step(LOAD, Weights(), FAST, 512, 4.0)
    assert hit_share(Weights()) == pytest.approx(0.73 + (0.92 - 0.73) / 4)  # a quarter is cached
    assert step.missed == pytest.approx((1 - hit_share(Weights())) * 10 * 6 * 2 * MB + 16 * 1000)
    assert step.seconds == pytest.approx(step.missed / 1e9 / expected.STREAMED_READ_SHARE, rel=0.01)
    more = decode_step(LOAD, Weights(streamed_nbytes=50 * MB), FAST, 512, 4.0)
    assert more.missed - step.missed == 50 * MB
    assert decode_step(LOAD, Weights(), FAST, 512, 4.0, hit_rate=1.0).missed == 16 * 1000


def test_compute_limits_where_the_disk_does_not() -> None:
    slow = Speeds(disk=1e15, latency=0.0, memory=10e9, int8_macs=1e18)
    step = decode_step(LOAD, Weights(), slow, 512, 4.0)
    read = 100 * MB + 10 * 6 * 2 * MB + 1000 + 100 * 512 * 4
    reading = step.missed / expected.READ_COMPUTE
    assert step.compute == pytest.approx(read / 10e9 / expected.DECODE_MEMORY_SHARE + reading)
    assert step.seconds == pytest.approx(step.compute, rel=0.01)


def test_no_read_overlaps_what_is_outside_of_the_experts() -> None:
    ends = replace(LOAD, outside_nbytes=50 * MB)  # of 220 MB
    same = Speeds(disk=0.5e9, latency=0.0, memory=10e9, int8_macs=1e18)
    step, apart = (decode_step(load, Weights(), same, 512, 4.0) for load in (LOAD, ends))
    read = 100 * MB + 10 * 6 * 2 * MB + 1000 + 100 * 512 * 4
    outside = (step.compute - step.missed / expected.READ_COMPUTE) * 50 * MB / read
    assert step.disk > step.compute
    assert apart.seconds - step.seconds == pytest.approx(outside)


def test_memory_for_the_first_experts_is_fresh() -> None:
    slow = replace(FAST, fresh=0.5e9)
    first, later = (prefill_step(LOAD, Weights(), slow, 512, 512, first=f) for f in (True, False))
    without = prefill_step(LOAD, Weights(), FAST, 512, 512, first=True)
    assert first.disk - without.disk == pytest.approx(250 * MB / 0.5e9)
    assert later.disk < without.disk


def test_prefill_reads_each_expert_once_a_step() -> None:
    one = prefill_step(LOAD, Weights(), FAST, 512, 512, first=False)
    touched = 64 * (1 - (1 - 6 / 64) ** 512)
    assert one.missed == pytest.approx(0.75 * 10 * touched * 2 * MB)
    two = prefill_step(LOAD, Weights(), FAST, 512, 256, first=False)
    assert two.missed == pytest.approx(2 * one.missed, rel=1e-6)
    cold = prefill_step(LOAD, Weights(), FAST, 512, 256, first=True)
    assert cold.missed == pytest.approx(1.75 * 10 * touched * 2 * MB, rel=1e-6)


def test_mapped_weights_miss_nothing() -> None:
    for step in (
        decode_step(LOAD, Weights(mapped=True), FAST, 512, 4.0),
        prefill_step(LOAD, Weights(mapped=True), FAST, 512, 512, first=True),
    ):
        assert (step.missed, step.disk, step.exposed) == (0, 0, 0)
    assert hit_share(Weights(mapped=True)) == 1.0
    assert hit_share(Weights(expert_nbytes=0)) == 1.0


def test_a_disk_is_measured_with_files_or_without(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(8 << 20))
    for files in ([file], [tmp_path / "missing"], []):
        disk = measure_disk(files, 1 << 20)
        assert disk.bandwidth > 0
        assert disk.latency > 0


def test_a_disk_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(StorageError, match="the disk cannot be measured"):
        measure_disk([], 4096)
