"""What a profile keeps of reads of streamed weights: all of them, and nothing when it is off."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from streamed import backend, make, memory_at, run

from deepmnn import _core
from deepmnn.backends.cpu import reads as columns
from deepmnn.backends.cpu.reads import Reads
from deepmnn.errors import RequestError

NAMES = ("reads", "read_nbytes", "expert_hits", "expert_misses", "predicted", "predicted_used")


@pytest.fixture(scope="module", params=["mixture", "dense"])
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    model = make(request.param, tmp_path_factory.mktemp(request.param))
    made = backend(model, memory_at(model, 0.1))
    run(made)
    core = made.model
    core.start_profile(1 << 14, reads=1 << 14)
    settled(core)
    core.profile(reset=True)
    before, begin = core.streaming, time.perf_counter_ns()
    run(made)
    settled(core)
    core.told = {name: core.streaming[name] - before[name] for name in core.streaming}  # type: ignore[attr-defined]
    core.ran = (begin, time.perf_counter_ns())  # type: ignore[attr-defined]
    return core


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
