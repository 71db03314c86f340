"""A profile of a model whose weights are streamed: what was read, who waited, and the bound."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import deepmnn
from deepmnn import LLM
from deepmnn.backends.cpu.reads import Reads
from deepmnn.cli import app
from deepmnn.conversion.convert import convert
from deepmnn.errors import RequestError
from deepmnn.inspect.profile import Phase, Profile, measure, profile, words
from deepmnn.inspect.profile.page import page
from deepmnn.inspect.profile.streaming import Streaming
from deepmnn.inspect.profile.trace import Event, chrome
from tiny_artifact import write_config

MIB = 1 << 20
LAYERS, EXPERTS, TOP_K, DENSE_LAYERS = 4, 24, 3, 1


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("streamed")
    write_config(
        directory / "source",
        vocab_size=8003,  # a table that does not fit into what is left of a slot
        hidden_size=256,
        moe_intermediate_size=1024,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=DENSE_LAYERS,
        n_routed_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        n_group=4,
        topk_group=2,
        max_position_embeddings=256,
    )
    out = directory / "model"
    return convert(directory / "source", out, quant="w4", random_weights=True, seed=5).path


def small_budget(mixture: Path) -> int:
    """12 MiB more than the least: of this process as it is now, which grows from test to test."""
    with pytest.raises(RequestError) as refused:
        deepmnn.load(mixture, memory="1MB", threads=2)
    found = re.search(r"at least (\d+)MB", str(refused.value))
    assert found is not None
    return int(found[1]) * 10**6 + 12 * MIB


@pytest.fixture(scope="module")
def model(mixture: Path) -> LLM:
    made = deepmnn.load(mixture, memory=small_budget(mixture), threads=2, kv_dtype="f32")
    assert made.is_streamed
    return made


@pytest.fixture(scope="module")
def found(model: LLM) -> Profile:
    return profile(model, repeat=6, trace=True)


def streaming(phase: Phase) -> Streaming:
    assert phase.streaming is not None
    return phase.streaming


def test_a_phase_says_what_it_read_and_waited(found: Profile) -> None:
    for phase in found.phases:
        told = streaming(phase)
        assert told.steps == phase.steps
        assert 0 < told.missed_nbytes <= told.nbytes
        assert 0 < told.reading <= told.seconds * 1.01
        assert 0 <= told.waiting < told.seconds
        assert told.bandwidth == told.nbytes / told.reading
        assert 0 < told.bandwidth <= told.disk
        assert 0 < told.bound_share <= 1.001
        assert told.guesses_used <= told.guesses
        assert sum(layer.reads for layer in told.layers) == told.reads
        assert sum(layer.nbytes for layer in told.layers) == told.nbytes
        for name in ("hits", "misses", "guesses", "guesses_used"):
            assert sum(getattr(layer, name) for layer in told.layers) == getattr(told, name)
        waited = sum(layer.waiting for layer in told.layers)
        assert waited == pytest.approx(told.waiting, rel=0.05, abs=1e-3)
    decode = streaming(found.decode)
    # Each step of decode chooses so many experts in each layer that has some.
    chosen = TOP_K * (LAYERS - DENSE_LAYERS) * decode.steps
    assert decode.hits + decode.misses == chosen
    with_experts = [layer for layer in decode.layers if layer.hits + layer.misses]
    assert [layer.layer for layer in with_experts] == [1, 2, 3]


def test_the_bound_is_the_slower_one() -> None:
    facts = {"reads": 4, "read_nbytes": 400, "read_seconds": 2.0, "wait_seconds": 3.0}
    facts |= {"expert_hits": 3, "expert_misses": 1, "predicted": 0, "predicted_used": 0}
    made = Streaming.of(facts, [], 2, 10.0)
    assert (made.bandwidth, made.disk, made.hit_rate) == (200.0, 200.0, 0.75)
    assert (made.disk_seconds, made.binds, made.bound_share) == (2.0, "compute", 0.7)
    made = replace(made, disk=50.0)
    assert (made.disk_seconds, made.compute_seconds) == (8.0, 7.0)
    assert (made.binds, made.bound_share) == ("disk", 0.8)
    quicker = replace(made, disk=100.0)
    assert (quicker.binds, quicker.bound_share) == ("compute", 0.7)

    def reads(*spans: tuple[int, int]) -> Reads:
        rows = [(begin, end, 0, 1000, 0, 0) for begin, end in spans]
        return Reads(
            (("a", "dense"),), np.array(rows), np.empty((0, 3), int), np.zeros((1, 4), int), 0
        )

    facts |= {"read_nbytes": 4000, "read_seconds": 400e-9}
    # One alone for 200 ns, then two together for 100, then one for 100.
    made = Streaming.of(facts, [reads((0, 200), (200, 300), (200, 300), (400, 500))], 2, 1e-6)
    assert made.bandwidth == pytest.approx(1e10)
    assert made.disk == pytest.approx(2e10)
    assert replace(made, hits=0, misses=0).hit_rate is None


def test_the_trace_has_the_reads_and_the_waits(found: Profile) -> None:
    assert found.trace is not None
    assert found.trace.lost == 0
    engine, *others = found.trace.threads
    lanes = [thread for thread in others if thread.name.startswith("disk")]
    assert [lane.name for lane in lanes] == [f"disk, read {i}" for i in range(len(lanes))]
    reads = [event for lane in lanes for event in lane.events]
    assert reads
    for lane in lanes:
        for before, after in zip(lane.events, lane.events[1:], strict=False):
            assert before.end <= after.begin
    assert {event.category for event in reads} == {"read"}
    assert all(int(event.facts["bytes"]) > 0 for event in reads)
    assert {event.facts["why"] for event in reads} <= {"wanted", "guessed", "read ahead"}
    assert any(re.fullmatch(r"expert \d+ of layer [123]", event.name) for event in reads)
    assert any(event.name == "rows of embed_tokens" for event in reads)

    def inside(event: Event, name: str) -> bool:
        slack = 20_000  # two readings of the clock
        return any(
            outer.begin - slack <= event.begin and event.end <= outer.end + slack
            for outer in engine.events
            if name in (outer.name, outer.category)
        )

    waits = [event for event in engine.events if event.category == "wait"]
    assert waits
    for wait in waits:
        assert wait.name.startswith("waits for ")
        assert inside(wait, "engine's step")
        assert inside(wait, "op")
    # A guess may still be read when the step that made it has ended.
    assert all(inside(replace(event, end=event.begin), "phase") for event in reads)
    named = {event["args"]["name"] for event in chrome(found.trace, "")["traceEvents"]
             if event["name"] == "thread_name"}  # fmt: skip
    assert "disk, read 0" in named


def test_a_model_in_memory_reads_nothing(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_machine", lambda model: None)  # takes seconds
    made = profile(deepmnn.load(mixture, threads=2), repeat=2, trace=True)
    assert made.trace is not None
    assert not [thread for thread in made.trace.threads if "disk" in thread.name]
    assert all(phase.streaming is None for phase in made.phases)
    assert "Read from the disk" not in page(made)
    assert made.as_dict()["decode"]["streaming"] is None


def test_it_is_shown(found: Profile) -> None:
    lines = words.streaming_words(streaming(found.decode))
    assert [line.split(":")[0] for line in lines] == ["disk", "experts", "bound"]
    made = page(found)
    for line in lines:
        assert line in made
    shown = json.loads(json.dumps(found.as_dict()))["decode"]["streaming"]
    assert shown["nbytes"] == streaming(found.decode).nbytes
    assert shown["bound_share"] == streaming(found.decode).bound_share
    weights = next(owner for owner in found.decode.memory if owner.name == "weights")
    assert 0 < weights.resident <= (weights.nbytes or 0)


def test_the_command_prints_it(mixture: Path, tmp_path: Path) -> None:
    flags = ["--memory", str(small_budget(mixture)), "--kv-dtype", "f32", "--threads", "2"]
    trace = tmp_path / "trace.json"
    arguments = ["profile", str(mixture), "--repeat", "2", *flags, "--trace", str(trace)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "chosen ones were in memory" in result.output
    assert "bound: the disk takes" in result.output
    assert '"disk, read 0"' in trace.read_text()


def test_a_profile_stays_within_the_budget_of_the_cache(mixture: Path, model: LLM) -> None:
    assert model.split is not None
    rows = model.split.sizes.cache_tokens
    made = measure._Runs(model, None, repeat=1000, batch=1, context=None)
    assert made.engine.manager.capacity <= rows
    profile(model, [1] * 9, repeat=2, batch=2)
    for batch, context in ((65, 9), (8, 200)):
        with pytest.raises(RequestError, match="memory budget"):
            profile(model, [1] * 9, repeat=2, batch=batch, context=context)
