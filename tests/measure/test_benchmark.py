from __future__ import annotations

import signal
from pathlib import Path

import pytest

import deepmnn
from deepmnn.errors import RequestError
from deepmnn.exporters.mnn.export import export
from deepmnn.measure import benchmark as module
from deepmnn.measure.benchmark import (
    BATCHES,
    Machine,
    benchmark,
    measure_machine,
    time_run,
    workload_of,
)
from tiny_artifact import tiny_artifact

SHAPE = {"prompt_tokens": (5,), "new_tokens": 2, "repeat": 1}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("benchmark"), quant="w8")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that needs no second to be measured."""
    monkeypatch.setattr(module, "measure_machine", lambda _: Machine(1, "none", 1e12, 1e15, 1e14))


def test_every_backend_is_measured_with_the_batches_it_runs(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for backend, batches in {"cpu": BATCHES, "reference": BATCHES, "mnn": (1,)}.items():
        report = benchmark(deepmnn.load(artifact, backend), **SHAPE)
        assert tuple(row.batch for row in report.rows) == batches
        for row in report.rows:
            assert row.prefill.mean > 0 < row.decode.mean
            assert 0 < (row.decode_bandwidth_share or 0) < 1
            assert 0 < (row.prefill_macs_share or 0) < 1
            for busy in (row.prefill_busy, row.decode_busy):
                assert busy is None if backend != "cpu" else 0 < (busy or 0) <= 1.01
    model = deepmnn.load(artifact, "mnn")
    assert [row.batch for row in benchmark(model, batch=(1,), **SHAPE).rows] == [1]
    with pytest.raises(RequestError, match="no batching"):
        benchmark(model, batch=(1, 2), **SHAPE)


def test_a_folder_has_the_shares_of_its_artifact(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = export(artifact, artifact.parent / "folder").path
    model = deepmnn.load(folder)
    (row,) = benchmark(model, **SHAPE).rows
    assert row.decode_bandwidth_share
    assert row.decode_macs_share
    assert row.prefill_macs_share
    through = deepmnn.load(artifact, "mnn")
    assert workload_of(model) == workload_of(through)


@pytest.mark.parametrize("wrong", [{"batch": ()}, {"batch": (0,)}, {"prompt_tokens": ()}])
def test_impossible_counts(artifact: Path, wrong: dict[str, tuple[int, ...]]) -> None:
    model = deepmnn.load(artifact)
    with pytest.raises(RequestError, match=next(iter(wrong))):
        benchmark(model, **{**SHAPE, **wrong})


def test_the_machine_is_measured_for_native_backends(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = measure_machine(deepmnn.load(artifact, "mnn", threads=1))
    assert machine is not None
    assert machine.threads == 1
    assert machine.read_bandwidth > 1e8
    assert measure_machine(deepmnn.load(artifact, "reference")) is None


def test_an_interrupted_run_leaves_the_engine_free(artifact: Path) -> None:
    model = deepmnn.load(artifact)
    with pytest.raises(KeyboardInterrupt):
        time_run(model, 5, 10**9, 1, 0, between=lambda: signal.raise_signal(signal.SIGINT))
    engine = model.engine  # when the run has ended
    assert engine.manager.free_blocks == engine.cache.blocks
