"""What a profile keeps of reads of streamed weights: all of them, and nothing when it is off."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from streamed import backend, make, memory_at, run

from deepmnn import _core
from deepmnn.backends.cpu import reads as columns
from deepmnn.backends.cpu.reads import Reads
from deepmnn.errors import RequestError

ROOM = 1 << 14


@dataclass(frozen=True)
class Ran:
    """A profiled run: what the core counted in it, what it kept, and between which times."""

    counts: dict[str, float]
    reads: Reads
    begin: int
    end: int


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in ("mixture", "dense")}


def settled(core: _core.Model) -> None:
    """Until nothing is read ahead any more."""
    last = -1.0
    while last != core.streaming["reads"]:
        last = core.streaming["reads"]
        time.sleep(0.05)


def taken(core: _core.Model) -> Reads:
    reads = Reads.take(core)
    assert reads is not None
    return reads


@pytest.fixture(scope="module", params=["mixture", "dense"])
def ran(request: pytest.FixtureRequest, models: dict[str, Path]) -> Ran:
    made = backend(models[request.param], memory_at(models[request.param], 0.1))
    core = made.model
    run(made)
    settled(core)
    core.start_profile(reads=ROOM)
    run(made)
    settled(core)
    core.profile(reset=True)
    before, begin = core.streaming, time.perf_counter_ns()
    run(made)
    settled(core)
    counts = {name: value - before[name] for name, value in core.streaming.items()}
    return Ran(counts, taken(core), begin, time.perf_counter_ns())


def test_what_is_kept_is_what_was_counted(ran: Ran) -> None:
    reads, waits, choices = ran.reads.reads, ran.reads.waits, ran.reads.choices.sum(axis=0)
    assert ran.reads.lost == 0
    assert len(reads) == ran.counts["reads"] > 0
    assert reads[:, columns.NBYTES].sum() == ran.counts["read_nbytes"]
    waited = (waits[:, columns.END] - waits[:, columns.BEGIN]).sum() / 1e9
    assert waited == pytest.approx(ran.counts["wait_seconds"], rel=0.02, abs=1e-5 * len(waits))
    names = ("expert_hits", "expert_misses", "predicted", "predicted_used")
    assert choices.tolist() == [ran.counts[name] for name in names]
    guessed = reads[reads[:, columns.CAUSE] == columns.GUESSED]
    assert len(guessed) == ran.counts["predicted"]
    assert 0 <= guessed[:, columns.USED].sum() <= ran.counts["predicted_used"]


def test_reads_lie_in_the_run_and_make_up_the_time_of_reading(ran: Ran) -> None:
    slack = 100_000  # two readings of the clock
    for spans in (ran.reads.reads, ran.reads.waits):
        begin, end = spans[:, columns.BEGIN], spans[:, columns.END]
        assert (ran.begin - slack <= begin).all()
        assert (begin <= end).all()
        assert (end <= ran.end + slack).all()
    covered, until = 0, 0
    for begin, end in sorted(ran.reads.reads[:, :2].tolist()):
        covered += max(0, end - max(begin, until))
        until = max(until, end)
    assert covered / 1e9 == pytest.approx(ran.counts["read_seconds"], rel=0.1, abs=1e-3)


def test_every_read_is_told_by_name(ran: Ran) -> None:
    told = [ran.reads.what(unit) for unit in ran.reads.reads[:, columns.UNIT].tolist()]
    kinds = {ran.reads.units[unit][1] for unit in ran.reads.reads[:, columns.UNIT].tolist()}
    if kinds == {"dense"}:
        assert "layers.3.mlp.down_proj" in told
        causes = set(ran.reads.reads[:, columns.CAUSE].tolist())
        assert causes <= {columns.WANTED, columns.AHEAD}
        assert columns.AHEAD in causes
    else:
        assert "rows of embed_tokens" in told
        assert {name for name in told if name.startswith("expert 7 of layer ")}
    assert ran.reads.what(-1) == "several reads"


def test_the_latest_are_kept_and_the_others_counted(models: dict[str, Path]) -> None:
    made = backend(models["mixture"], memory_at(models["mixture"], 0.05))
    made.model.start_profile(reads=8)
    before = made.model.streaming["reads"]
    run(made)
    settled(made.model)
    kept = taken(made.model)
    assert len(kept.reads) == len(kept.waits) == 8
    assert kept.lost >= made.model.streaming["reads"] - before - 8
    assert kept.reads[-1, columns.END] == kept.reads[:, columns.END].max()
    for wrong in (-1, 1 << 30):
        with pytest.raises(RequestError, match="reads"):
            made.model.start_profile(reads=wrong)


def test_nothing_is_kept_unless_somebody_asks(models: dict[str, Path]) -> None:
    made = backend(models["mixture"], memory_at(models["mixture"], 0.05))
    with pytest.raises(RequestError, match="start_profile"):
        made.model.reads()
    made.model.start_profile(1 << 10)
    run(made)
    kept = taken(made.model)
    assert not len(kept.reads)
    assert not len(kept.waits)
    made.model.start_profile(reads=ROOM)
    run(made)
    assert len(taken(made.model).reads)
    made.model.stop_profile()
    made.model.start_profile()
    run(made)
    assert not len(taken(made.model).reads)
    assert np.array_equal(taken(made.model).choices, np.empty((0, 4)))


def test_mapped_weights_are_not_read(models: dict[str, Path]) -> None:
    made = backend(models["mixture"])
    made.model.start_profile(reads=ROOM)
    run(made)
    assert Reads.take(made.model) is None
