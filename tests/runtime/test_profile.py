"""What the core counts of its steps: every op, every thread, and nothing when it is off."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.backends.cpu.counts import Counts
from deepmnn.engine.engine import Engine
from deepmnn.errors import RequestError
from deepmnn.text.sampling_params import SamplingParams
from tiny_artifact import tiny_artifact

STEPS = 6
ZONE, OWN, STOLEN, WAITING = range(4)


@pytest.fixture(params=[1, 2])
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    path = tiny_artifact(tmp_path_factory.mktemp("model"))
    return CpuBackend(path, threads=request.param).model


def run(core: _core.Model, steps: int = STEPS) -> float:
    """Seconds of `steps` steps: a prompt and tokens after it."""

    class Wrapped(CpuBackend):
        def __init__(self) -> None:
            self.model, self.vocab_size = core, core.vocab_size
            self.outputs, self.caches, self.draft_state = ("logits",), {}, None

    engine = Engine(Wrapped(), 64, 64)
    engine.submit([1, 2, 3, 4, 5], SamplingParams(max_tokens=steps, ignore_eos=True))
    start = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return time.perf_counter() - start


def test_nothing_is_counted_until_somebody_asks(core: _core.Model) -> None:
    run(core)
    for ask in (core.profile, core.spans):
        with pytest.raises(RequestError, match="start_profile"):
            ask()
    core.start_profile()
    assert not core.profile()[0].any()
    core.stop_profile()
    with pytest.raises(RequestError, match="start_profile"):
        core.profile()


def test_the_zones_add_up_to_the_steps(core: _core.Model) -> None:
    run(core)
    core.start_profile()
    before = core.step_seconds
    run(core)
    inside = core.step_seconds - before
    counts = Counts.take(core)
    ops, sampling = len(core.instructions), _core.PARTS.index("sampling")
    assert (counts.calls == STEPS).all()
    step = counts.seconds.sum() - counts.seconds[ops + sampling]
    assert step == pytest.approx(inside, rel=0.02, abs=20e-6 * STEPS)
    assert (counts.seconds[:ops] > 0).all()
    assert not Counts.take(core).calls.any(), "taken twice"


def test_busy_stealing_and_waiting_add_up(core: _core.Model) -> None:
    core.start_profile()
    run(core)
    counts = Counts.take(core)
    total = counts.busy + counts.stealing + counts.waiting
    np.testing.assert_allclose(total, counts.seconds * core.threads, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(counts.threads.sum(), total.sum())
    assert (counts.busy >= 0).all()
    assert (counts.stealing >= 0).all()
    assert (counts.stolen <= counts.pieces).all()
    assert counts.pieces.sum() > 0
    if core.threads == 1:
        assert not counts.waiting.any()
        assert not counts.stolen.any()


@pytest.fixture
def spans(core: _core.Model) -> Iterator[list[tuple[int, np.ndarray]]]:
    run(core)
    core.start_profile(1 << 12)
    run(core)
    yield core.spans()
    core.stop_profile()


def test_spans_of_a_thread_are_nested(
    core: _core.Model, spans: list[tuple[int, np.ndarray]]
) -> None:
    zones = len(core.instructions) + len(_core.PARTS)
    assert len(spans) == core.threads
    for thread, (lost, rows) in enumerate(spans):
        assert lost == 0
        begin, end, zone, doing, pieces = rows.T
        assert (begin <= end).all()
        assert ((zone >= 0) & (zone < zones)).all()
        assert (pieces[(doing == OWN) | (doing == STOLEN)] > 0).all()
        assert thread == 0 or not np.isin(doing, [ZONE, WAITING]).any()
        own = rows[np.argsort(begin, kind="stable")]
        inner = own[own[:, 3] != ZONE]
        assert (inner[1:, 0] >= inner[:-1, 1]).all(), "two things at once"
    rows = spans[0][1]
    outer = rows[rows[:, 3] == ZONE]
    assert len(outer) == STEPS * zones
    for begin, end, zone, doing, _ in rows:
        if doing != ZONE:
            around = outer[(outer[:, 0] <= begin) & (outer[:, 1] >= end)]
            assert zone in around[:, 2]


def test_a_full_ring_keeps_the_latest_and_says_what_it_lost(core: _core.Model) -> None:
    core.start_profile(10)
    run(core, 4)
    lost, rows = core.spans()[0]
    assert len(rows) == 10
    zones = len(core.instructions) + len(_core.PARTS)
    assert lost + len(rows) >= 4 * zones
    assert rows[-1][2] == len(core.instructions) + _core.PARTS.index("sampling")
    for wrong in (-1, 1 << 30):
        with pytest.raises(RequestError, match="spans"):
            core.start_profile(wrong)


def test_peaks_of_memory_are_those_since_the_last_look(core: _core.Model) -> None:
    run(core, 1)  # five tokens at once
    prefill = core.memory(reset=True)
    run(core, 1)
    assert core.memory(reset=True)["activations"] == prefill["activations"]
    for held, resident, peak in prefill.values():
        assert held >= resident >= 0
        assert peak >= 0
    assert prefill["outputs"][2] == 4 * core.vocab_size
    assert core.memory()["activations"][2] == 0
