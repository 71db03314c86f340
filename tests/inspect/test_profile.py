"""A profile: whether its parts are the whole, what its nodes take, and whom it blames."""

from __future__ import annotations

import mmap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

import deepmnn
from deepmnn import _core
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.conversion.convert import convert
from deepmnn.engine.kv_cache import BlockManager
from deepmnn.engine.scheduler import Scheduler
from deepmnn.errors import ContextLengthError, RequestError
from deepmnn.graph.workload import Workload
from deepmnn.inspect.profile import Profile, measure, profile
from deepmnn.inspect.profile.input import prompt
from deepmnn.inspect.profile.load import Load, StepSpan
from deepmnn.inspect.profile.recorder import REST
from deepmnn.measure.benchmark import Machine
from deepmnn.text.stream import TextStream
from tiny_artifact import CONFIG, tiny_artifact, write_config
from tiny_llm import IDS, load
from tiny_models import tiny_checkpoint

MACHINE = Machine(2, "none", read_bandwidth=1e10, int8_macs=1e11, f32_macs=2e10)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that needs no second to be measured."""
    monkeypatch.setattr(
        measure,
        "measure_machine",
        lambda model: None if "Reference" in type(model.backend).__name__ else MACHINE,
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("profiled"), quant="w8")


def profiled(artifact: Path, backend: str = "cpu", threads: int = 2, **options: Any) -> Profile:
    return profile(load(artifact, backend, threads=threads), **{"repeat": 20, **options})


@pytest.mark.parametrize("threads", [1, 2])
def test_the_parts_are_the_whole(artifact: Path, threads: int) -> None:
    rest = {}
    for _ in range(3):  # another process may take the core between two clocks
        found = profiled(artifact, threads=threads, repeat=60)
        for phase in found.phases:
            shares = [cost.share for cost in (*phase.nodes, *phase.parts)]
            assert sum(shares) == pytest.approx(1)
            seconds = [cost.seconds for cost in (*phase.nodes, *phase.parts)]
            assert sum(seconds) == pytest.approx(phase.seconds)
            rest[phase.name] = next(part for part in phase.parts if part.name == REST).share
        if max(rest.values()) < 0.02:
            break
    assert all(-1e-3 < share < 0.02 for share in rest.values()), rest
    assert {phase.name for phase in found.phases} == {"prefill", "decode"}


def test_kinds_layers_and_threads_are_sums_of_the_nodes(artifact: Path) -> None:
    found = profiled(artifact)
    graph = load(artifact, "cpu").artifact.graph()
    for phase in found.phases:
        assert [(n.name, n.op) for n in phase.nodes] == [(n.name, n.op) for n in graph.nodes]
        assert all(node.calls == phase.steps for node in phase.nodes)
        for groups in (phase.kinds, phase.layers, [phase.whole]):
            for field in ("seconds", "nbytes", "int8_macs", "f32_macs", "busy", "waiting"):
                total = sum(getattr(group, field) for group in groups)
                assert total == pytest.approx(sum(getattr(n, field) for n in phase.nodes)), field
        assert [layer.layer for layer in phase.layers] == [0, 1, None]
        times = [kind.seconds for kind in phase.kinds]
        assert times == sorted(times, reverse=True)
        for cost in (*phase.nodes, phase.whole):
            spent = cost.busy + cost.stealing + cost.waiting
            assert spent == pytest.approx(2 * cost.seconds)
        assert len(phase.threads) == 2


def test_every_prompt_is_run_whole_though_it_was_run_before(artifact: Path) -> None:
    found = profiled(artifact, ids=IDS * 4, repeat=3, batch=2)
    prefill, decode = found.phases
    assert prefill.tokens == 3 * 2 * 4 * len(IDS)
    assert prefill.context == (4 * len(IDS),) * 2
    assert (decode.tokens, decode.runs, decode.steps) == (3 * 2, 3, 3)


def test_decoding_begins_with_the_context_that_is_asked_for(artifact: Path) -> None:
    found = profiled(artifact, ids=IDS, context=100, repeat=5)
    assert found.prefill.context == (len(IDS), len(IDS))
    assert found.decode.context == (101, 105)
    most = CONFIG["max_position_embeddings"]
    long = profiled(artifact, ids=IDS, context=most - 15, repeat=30)
    assert long.decode.runs == 30, "in several rounds"
    assert long.decode.context[1] <= most
    with pytest.raises(ContextLengthError, match=str(most)):
        profiled(artifact, ids=IDS, context=most)


def test_a_phase_ends_when_its_time_is_up(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    found = profiled(artifact, repeat=1000)
    for phase in found.phases:
        assert (phase.runs, phase.asked) == (1, 1000)


def test_filling_a_long_context_takes_nothing_from_the_time_of_decode(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = measure._Runs._prefill

    def slow(*args: Any) -> None:
        time.sleep(0.4)
        usual(*args)

    monkeypatch.setattr(measure, "SECONDS", 0.3)
    monkeypatch.setattr(measure._Runs, "_prefill", slow)
    assert profiled(artifact, ids=IDS, repeat=3).decode.runs == 3


@pytest.mark.parametrize("bad", [{"repeat": 0}, {"batch": 0}, {"context": 0}, {"ids": []}])
def test_impossible_counts_are_refused(artifact: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        profiled(artifact, **{"ids": IDS, **bad})


def test_ids_outside_the_vocabulary_are_refused(artifact: Path) -> None:
    with pytest.raises(RequestError, match="vocabulary"):
        profiled(artifact, ids=[1, 999])


def test_the_core_stops_counting_whatever_happens(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(artifact, "cpu")
    core = model.backend.model  # type: ignore[attr-defined]
    profile(model, repeat=1)
    with pytest.raises(RequestError, match="start_profile"):
        core.profile()

    def broken(*_: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr(Scheduler, "schedule", broken)
    with pytest.raises(OSError, match="no more"):
        profile(model, repeat=1)
    with pytest.raises(RequestError, match="start_profile"):
        core.profile()


# ---------------------------------------------------------------------------- what nodes take


@pytest.mark.parametrize(
    ("model_type", "index"), [("qwen2", 0), ("deepseek_v2", 1), ("deepseek_v3", 0)]
)
def test_macs_are_those_that_torch_counts(tmp_path: Path, model_type: str, index: int) -> None:
    """Of one token, which sees one row: its own."""
    tiny = tiny_checkpoint(model_type, index, tmp_path / "checkpoint")
    with FlopCounterMode(display=False) as counter:
        tiny.logits([3])
    artifact = convert(tiny.path, tmp_path / "model", quant="fp32", optimize_level=0).path
    graph = deepmnn.load(artifact).artifact.graph()
    step = Load([(StepSpan(1, 0, 1),)])
    works = [step.work_of(graph, node, 4.0, "f32", "expanded") for node in graph.nodes]
    assert sum(work.f32_macs for work in works) == counter.get_total_flops() / 2
    assert not any(work.int8_macs for work in works)


@pytest.mark.parametrize("level", [0, 3])
def test_bytes_and_macs_of_the_nodes_are_the_workload(tmp_path: Path, level: int) -> None:
    tiny = tiny_checkpoint("deepseek_v2", 1, tmp_path / "checkpoint")
    report = convert(tiny.path, tmp_path / "model", quant="w8", optimize_level=level)
    graph = deepmnn.load(report.path).artifact.graph()
    workload = Workload.of(graph)
    decode = Load([(StepSpan(1, 9, 1), StepSpan(1, 9, 1))])
    works = [decode.work_of(graph, node, 4.0, "f32", "auto") for node in graph.nodes]
    expected = workload.decode_nbytes(2, 10, 4)
    # A plain graph's cached rows are an op of their own, a fused one's are read by attention.
    assert sum(work.nbytes for work in works) == pytest.approx(expected)
    macs = sum(work.int8_macs + work.f32_macs for work in works)
    absorbed = workload.macs(2, 10, 2)
    assert macs <= absorbed * (1 + 1e-9)
    prefill = Load([(StepSpan(7, 0, 0),), (StepSpan(4, 7, 1),)])
    works = [prefill.work_of(graph, node, 4.0, "f32", "auto") for node in graph.nodes]
    macs = sum(work.int8_macs + work.f32_macs for work in works)
    assert macs == pytest.approx(workload.prefill_macs([11], 7))


def test_each_format_has_a_peak_of_its_own(tmp_path: Path) -> None:
    for quant, kv_dtype in (("w8", "int8"), ("w8", "f32"), ("fp32", "int8")):
        path = tiny_artifact(tmp_path / f"{quant}-{kv_dtype}", quant=quant)
        found = profile(load(path, "cpu", kv_dtype=kv_dtype), IDS, repeat=2)
        attention = next(k for k in found.decode.kinds if k.op.endswith("attention"))
        weights = next(k for k in found.decode.kinds if k.op == "linear")
        assert bool(weights.int8_macs) == (quant == "w8")
        assert bool(attention.f32_macs) == (kv_dtype == "f32" or quant == "fp32")


def test_the_limit_that_binds_is_the_larger_share(artifact: Path) -> None:
    cost = replace(profiled(artifact, repeat=1).decode.whole, seconds=1.0)
    for nbytes, int8, f32, binds in (
        (5e9, 1e10, 0.0, "memory"),
        (1e9, 5e10, 0.0, "compute"),
        (1e9, 0.0, 1e10, "compute"),
        (1e8, 0.0, 1e8, "neither"),
        (0.0, 0.0, 0.0, ""),
    ):
        made = replace(cost, nbytes=nbytes, int8_macs=int8, f32_macs=f32).beside(MACHINE).limits
        assert made is not None
        assert made.binds == binds
        assert made.memory == pytest.approx(nbytes / 1e10)
        assert made.compute == pytest.approx(int8 / 1e11 + f32 / 2e10)


# ---------------------------------------------------------------------------- planted faults


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """slow(owner, method): a method that takes 3 ms more."""

    def make(owner: type, name: str) -> None:
        usual = getattr(owner, name)

        def slower(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0.003)
            return usual(*args, **kwargs)

        monkeypatch.setattr(owner, name, slower)

    return make


@pytest.mark.parametrize(
    ("owner", "method", "part"),
    [
        (Scheduler, "schedule", "scheduler"),
        (BlockManager, "commit", "scheduler"),
        (CpuBackend, "sample", "sampler"),
        (TextStream, "push", "output"),
        (CpuBackend, "step", "binding"),
    ],
)
def test_a_slow_part_is_named(
    artifact: Path, slow: Any, owner: type, method: str, part: str
) -> None:
    slow(owner, method)
    found = profiled(artifact, ids=IDS, repeat=5)
    worst = max(found.decode.parts, key=lambda each: each.seconds)
    assert worst.name == part
    assert worst.seconds >= 5 * 0.003


def test_a_slow_op_is_named(tmp_path: Path) -> None:
    """One that multiplies as much as all others together: a wide head."""
    write_config(tmp_path / "source", vocab_size=40_000)
    path = convert(
        tmp_path / "source", tmp_path / "model", quant="w8", random_weights=True, seed=3
    ).path
    found = profile(load(path, "cpu", threads=1), IDS, repeat=20)
    slowest = max(found.decode.nodes, key=lambda node: node.seconds)
    assert slowest.name == "lm_head"
    assert slowest.share > 0.3


# ---------------------------------------------------------------------------- memory


def test_memory_belongs_to_its_owner(artifact: Path) -> None:
    model = load(artifact, "cpu")
    short = profile(model, IDS, repeat=3)
    long = profile(model, IDS * 8, repeat=3)

    def peak(found: Profile, phase: str, owner: str) -> int:
        of_phase = found.prefill if phase == "prefill" else found.decode
        return next(o.peak for o in of_phase.memory if o.name == owner) or 0

    for owner in ("activations", "quantised rows", "rope tables"):
        assert peak(long, "prefill", owner) > peak(short, "prefill", owner), owner
        assert peak(long, "decode", owner) == peak(short, "decode", owner), owner
    row = model.kv_bytes_per_token
    assert peak(long, "prefill", "KV cache") == 8 * len(IDS) * row
    assert peak(long, "decode", "KV cache") == (8 * len(IDS) + 3) * row
    assert peak(long, "decode", "outputs") == 4 * model.vocab_size
    for phase in long.phases:
        assert sum(owner.resident for owner in phase.memory) == pytest.approx(phase.rss, rel=0.05)
        weights = next(owner for owner in phase.memory if owner.name == "weights")
        assert 0 < weights.resident <= (weights.nbytes or 0)
        assert phase.peak_rss >= phase.rss


def test_a_page_that_is_touched_is_a_fault(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, pages = CpuBackend.sample, 500

    def touching(self: CpuBackend, draws: Any) -> Any:
        with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for page in range(pages):
                memory[page * mmap.PAGESIZE] = 1
        return usual(self, draws)

    before = profiled(artifact, ids=IDS, repeat=4).decode.system.minor_faults
    monkeypatch.setattr(CpuBackend, "sample", touching)
    found = profiled(artifact, ids=IDS, repeat=4).decode.system
    assert found.minor_faults - before >= pages


# ---------------------------------------------------------------------------- backends, input


def test_mnn_tells_what_it_can(artifact: Path) -> None:
    pytest.importorskip("MNN")
    found = profiled(artifact, "mnn", ids=IDS, repeat=3)
    assert found.backend == "mnn"
    assert any("Interpreter" in note for note in found.notes)
    for phase in found.phases:
        assert not phase.nodes
        assert not phase.threads
        assert sum(part.share for part in phase.parts) == pytest.approx(1)
        assert next(part for part in phase.parts if part.name == "MNN").seconds > 0
        assert phase.whole.nbytes > 0 < phase.whole.macs
        assert phase.whole.limits is not None
    with pytest.raises(RequestError, match="no batching"):
        profiled(artifact, "mnn", batch=2)


def test_the_reference_has_no_limits(artifact: Path) -> None:
    found = profiled(artifact, "reference", ids=IDS * 6, repeat=3)
    assert found.machine is None
    assert next(part for part in found.prefill.parts if part.name == "numpy").seconds > 0
    assert found.prefill.whole.limits is None


@pytest.mark.parametrize("isa", _core.isas())
def test_every_instruction_set_is_profiled(artifact: Path, isa: str) -> None:
    model = load(artifact, "cpu", isa=isa, threads=1)
    found = profile(model, IDS, repeat=2)
    assert found.decode.kinds[0].seconds > 0


def test_prompts_come_from_files(artifact: Path, tmp_path: Path) -> None:
    model = load(artifact, "cpu")
    ids = np.array(IDS, np.int32)
    ids.tofile(tmp_path / "input.bin")
    np.save(tmp_path / "ids.npy", ids.astype(np.int64))
    (tmp_path / "text.txt").write_text("Two and two")
    for name in ("input.bin", "ids.npy"):
        assert prompt(model, str(tmp_path / name)) == IDS
    text = model.tokenizer.encode("Two and two")
    assert prompt(model, str(tmp_path / "text.txt")) == list(text) == prompt(model, "Two and two")
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    np.array([1, 100_000], np.int32).tofile(tmp_path / "other.bin")
    for name in ("empty.bin", "odd.bin", "other.bin"):
        with pytest.raises(RequestError):
            prompt(model, str(tmp_path / name))


def test_no_tokenizer_is_needed(tmp_path: Path) -> None:
    model = load(tiny_artifact(tmp_path, quant="w8", tokenizer=False), "cpu")
    np.array(IDS, np.int32).tofile(tmp_path / "input.bin")
    ids = prompt(model, str(tmp_path / "input.bin"))
    found = profile(model, ids, repeat=2)
    assert found.prompt_tokens == len(IDS)
    assert profile(model, repeat=1).prompt_tokens > 0
    with pytest.raises(RequestError, match="tokenizer"):
        prompt(model, "a text")
