"""A budget of memory: what it is split into, what is chosen to fit, and what is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from deepmnn import LoadOptions, _core
from deepmnn.api.memory import (
    ENOUGH_ROWS,
    FEWEST_ROWS,
    GRAMMAR_NBYTES,
    GROWTH_NBYTES,
    LEAST_ROWS,
    TABLES,
    THREAD_NBYTES,
    Demand,
    Sizes,
    least_budget,
    row_nbytes,
    split,
)
from deepmnn.api.process_memory import held_nbytes, machine_nbytes
from deepmnn.backends.cpu.lower import lower
from deepmnn.conversion.convert import plan_conversion
from deepmnn.conversion.need import working_nbytes
from deepmnn.conversion.plan import Plan
from deepmnn.errors import RequestError
from deepmnn.formats import named
from deepmnn.graph.caches import CacheEntry
from tiny_artifact import tiny_artifact, write_config

PUBLISHED = Path(__file__).parents[1] / "models" / "published"
MIB = 1 << 20
GIB = 1 << 30
PROCESS = 100 * MIB
OPTIONS = LoadOptions(threads=2)


@pytest.fixture(scope="module")
def lite() -> tuple[Plan, Demand]:
    """DeepSeek-V2-Lite in w4, of which nothing but config.json is there."""
    plan = plan_conversion(PUBLISHED / "DeepSeek-V2-Lite.json", "w4", random_weights=True)
    data = lower(plan.graph, plan.memory, plan.locations, [shard.file for shard in plan.shards])
    return plan, Demand(data, 163840, 2, PROCESS)


def test_the_parts_add_up(lite: tuple[Plan, Demand]) -> None:
    plan, demand = lite
    read = [plan.graph.weights[n] for n in {n for node in plan.graph.nodes for n in node.weights}]
    total = sum(named(w.format).nbytes(*w.matrix_shape) for w in read)
    for budget in (2 * GIB, 4 * GIB, 6 * GIB, 64 * GIB):
        found = split(demand, OPTIONS, budget)
        assert found.base == PROCESS + GROWTH_NBYTES + 2 * THREAD_NBYTES + TABLES * len(demand.data)
        rows = -(-found.sizes.cache_tokens // 32)
        assert found.kv == rows * (32 * 27 * 576 * 4 + 512)
        assert found.weights.total_nbytes == total
        weights = found.weights.memory_nbytes
        assert found.base + found.kv + found.step.nbytes + weights <= budget
        assert found.is_streamed == (budget < 10 * GIB)
        assert found.least <= budget
        if found.is_streamed:  # what is left is used, but for less than an expert
            spare = found.room - weights
            assert 0 <= spare < 8 * MIB


def test_a_row_of_the_cache() -> None:
    assert row_nbytes({"k": CacheEntry(64), "v": CacheEntry(130)}) == {
        "f32": 4 * 194, "bf16": 2 * 194, "int8": 64 + 4 + 132 + 12,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_a_row_of_the_cache_is_what_the_engine_takes(dtype: str, tmp_path: Path) -> None:
    model = deepmnn.load(tiny_artifact(tmp_path), kv_dtype=dtype, threads=1)
    cache = model.backend.new_cache(3, 32, dtype)
    rows = 3 * 32 * row_nbytes(model.backend.caches)[dtype]
    assert rows <= cache.nbytes <= rows + 64 * len(model.backend.model.caches)


def test_answers_of_a_schema_are_counted(lite: tuple[Plan, Demand]) -> None:
    _, demand = lite
    more = replace(demand, grammars=True)
    assert demand.vocab_size == 102400
    assert more.base == demand.base + 102400 * GRAMMAR_NBYTES


def test_with_plenty_everything_is_as_usual(lite: tuple[Plan, Demand]) -> None:
    _, demand = lite
    found = split(demand, OPTIONS, 64 * GIB)
    assert found.sizes == Sizes("f32", GIB // (27 * 576 * 4), 512)
    assert (found.changes, found.weights.mapped) == ((), True)
    assert "all of them" in found.line()


def test_a_short_budget_makes_the_cache_smaller_first(lite: tuple[Plan, Demand]) -> None:
    _, demand = lite
    found = split(demand, OPTIONS, 4 * GIB)
    assert found.sizes.kv_dtype == "f32"
    assert found.sizes.cache_tokens == ENOUGH_ROWS
    found = split(demand, OPTIONS, 5 * GIB // 4)
    assert found.sizes.kv_dtype == "f32"
    assert LEAST_ROWS <= found.sizes.cache_tokens < ENOUGH_ROWS
    assert found.kv <= 5 * GIB // 32 + 32 * 27 * 576 * 4 + 512 * 128
    assert found.sizes.max_batch_tokens == 512
    (change,) = found.changes
    assert change.startswith("a KV cache of")


def test_then_it_is_stored_in_fewer_bits_and_that_is_said(lite: tuple[Plan, Demand]) -> None:
    _, demand = lite
    found = split(demand, OPTIONS, 3 * GIB // 4)
    assert found.sizes.kv_dtype == "bf16"
    assert found.changes[0] == "keys and values in bf16, not f32"


def test_what_is_given_stays(lite: tuple[Plan, Demand]) -> None:
    _, demand = lite
    given = replace(OPTIONS, kv_dtype="f32", cache_tokens=20000, max_batch_tokens=100)
    found = split(demand, given, 4 * GIB)
    assert found.sizes == Sizes("f32", 20000, 100)
    with pytest.raises(RequestError, match="Or leave out cache_tokens or kv_dtype"):
        split(demand, given, GIB)


def test_the_smallest_budget_is_enough_and_a_byte_less_is_refused(
    lite: tuple[Plan, Demand],
) -> None:
    _, demand = lite
    least = least_budget(demand, OPTIONS)
    found = split(demand, OPTIONS, least)
    assert (found.sizes.kv_dtype, found.sizes.cache_tokens) == ("int8", FEWEST_ROWS)
    assert found.sizes.max_batch_tokens == 32
    with pytest.raises(RequestError, match=r"does not run in it; expected at least \d+MB"):
        split(demand, OPTIONS, least - 1)


def test_a_draft_part_is_left_out_before_anything_makes_room_for_it(tmp_path: Path) -> None:
    fields = json.loads((PUBLISHED / "DeepSeek-V3.json").read_text())
    fields |= {"num_hidden_layers": 5, "n_routed_experts": 16, "vocab_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    plan = plan_conversion(tmp_path / "config.json", "w4", random_weights=True)
    data = plan.program(plan.locations)
    with_it, without = Demand(data, 4096, 2, PROCESS, draft=True), Demand(data, 4096, 2, PROCESS)
    own = sum(weight.nbytes for weight in plan.draft_weights)
    assert with_it.weights.total_nbytes - without.weights.total_nbytes == own > 0
    assert with_it.weights.least_nbytes == without.weights.least_nbytes
    assert with_it.row_nbytes["f32"] * 5 == without.row_nbytes["f32"] * 6
    whole, alone = (split(demand, OPTIONS, 1 << 40) for demand in (with_it, without))
    assert (whole.draft, alone.draft) == (True, False)
    assert whole.kv * 5 == pytest.approx(alone.kv * 6, rel=0.01)
    assert whole.step.outputs > alone.step.outputs
    least = whole.whole
    assert split(with_it, OPTIONS, least).draft
    for budget in (least - 1, alone.whole, alone.whole - 1, alone.least):
        found, want = split(with_it, OPTIONS, budget), split(without, OPTIONS, budget)
        assert replace(found, weights=want.weights) == want
        assert found.weights.memory_nbytes == want.weights.memory_nbytes
        assert found.is_streamed == want.is_streamed
    assert least_budget(with_it, OPTIONS) == least_budget(without, OPTIONS)


@pytest.mark.slow
def test_v3_is_planned_from_its_config_alone() -> None:
    plan = plan_conversion(PUBLISHED / "DeepSeek-V3.json", "w4", random_weights=True)
    data = lower(plan.graph, plan.memory, plan.locations, [shard.file for shard in plan.shards])
    found = split(Demand(data, 163840, 2, PROCESS), OPTIONS, 16 * GIB)
    read = {n for node in plan.graph.nodes for n in node.weights}
    assert found.weights.total_nbytes == sum(plan.graph.weights[name].nbytes for name in read)
    experts = [w for w in plan.graph.weights.values() if w.role == "expert" and w.name in read]
    assert found.weights.expert_nbytes >= sum(w.nbytes for w in experts)
    assert found.weights.expert_nbytes <= 1.001 * sum(w.nbytes for w in experts)


def test_what_the_process_holds_is_read_from_the_kernel(tmp_path: Path) -> None:
    proc = tmp_path / "proc" / "self"
    proc.mkdir(parents=True)
    assert held_nbytes(tmp_path) == 0
    (proc / "status").write_text("Name:\tpython\nVmRSS:\t   2048 kB\n")
    assert held_nbytes(tmp_path) == 2 * MIB
    (proc / "smaps_rollup").write_text("0-1 ---p 0 00:00 0 [rollup]\nRss:   3072 kB\nPss: 1 kB\n")
    assert held_nbytes(tmp_path) == 3 * MIB
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable:  1024 kB\n")
    assert machine_nbytes(tmp_path) == 4 * MIB
    assert held_nbytes() > 10 * MIB


@pytest.mark.parametrize("version", [1, 2])
def test_the_machine_is_its_control_group(tmp_path: Path, version: int) -> None:
    proc, group = tmp_path / "proc" / "self", tmp_path / "sys" / "fs" / "cgroup"
    proc.mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable:  999999 kB\n")
    (proc / "status").write_text("VmRSS:\t   2048 kB\n")
    if version == 2:
        (proc / "cgroup").write_text("0::/job\n")
        (group / "job").mkdir(parents=True)
        (group / "cgroup.controllers").write_text("memory\n")
        (group / "job" / "memory.max").write_text(f"{20 * MIB}\n")
        (group / "job" / "memory.current").write_text(f"{5 * MIB}\n")
    else:
        (proc / "cgroup").write_text("4:memory:/job\n")
        (group / "memory" / "job").mkdir(parents=True)
        (group / "memory" / "job" / "memory.limit_in_bytes").write_text(f"{20 * MIB}\n")
        (group / "memory" / "job" / "memory.usage_in_bytes").write_text(f"{5 * MIB}\n")
    assert machine_nbytes(tmp_path) == 17 * MIB


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture with more weights than the engine needs at once."""
    from deepmnn.conversion.convert import convert

    place = tmp_path_factory.mktemp("small")
    write_config(
        place / "source", hidden_size=256, moe_intermediate_size=256, n_routed_experts=64,
        num_hidden_layers=4, intermediate_size=512,
    )  # fmt: skip
    return convert(place / "source", place / "model", "bf16", random_weights=True).path


def least_of(path: Path) -> int:
    """The smallest budget of this process, as the refusal says it."""
    with pytest.raises(RequestError) as caught:
        deepmnn.load(path, memory="1MB", threads=2)
    return int(str(caught.value).split("at least ")[1].split("MB")[0]) * 1_000_000


def test_a_model_answers_alike_in_a_small_budget(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = list(range(5, 60))
    whole = deepmnn.load(small, threads=2).logits(ids)
    with caplog.at_level(logging.INFO, "deepmnn"):
        model = deepmnn.load(small, memory=least_of(small) + 4 * MIB, threads=2, kv_dtype="f32")
    assert model.is_streamed
    assert model.split is not None
    assert model.backend.model.weight_plan.cache_nbytes < model.split.weights.expert_nbytes
    assert model.sizes.cache_tokens >= 192
    assert (model.logits(ids) == whole).all()
    assert caplog.messages[-1] == model.split.line()
    assert "memory='" in repr(model)
    assert "\n" not in repr(model)


def test_a_budget_that_is_enough_changes_nothing(small: Path) -> None:
    model = deepmnn.load(small, memory="16GiB", threads=2)
    assert not model.is_streamed
    assert model.backend.model.streaming == {}
    assert model.sizes == deepmnn.load(small, threads=2).sizes


def test_a_short_machine_is_a_budget(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    least = least_of(small)
    left = least + 4 * MIB - held_nbytes()
    monkeypatch.setattr(_core, "available_memory", lambda root="": left)
    with caplog.at_level(logging.INFO, "deepmnn"):
        model = deepmnn.load(small, threads=2)
    assert model.is_streamed
    assert caplog.messages[-1].startswith("memory ")
    assert model.engine.manager.disk is None, "rows go to disk only where somebody has asked"


def test_what_is_too_small_is_refused_before_a_weight_is_read(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(_core, "Model", never)
    monkeypatch.setattr("deepmnn.artifact.reader.Artifact.verify", never)
    with pytest.raises(RequestError, match=r"memory is 1\.0 MB, and this model does not run in it"):
        deepmnn.load(small, memory="1MB")


def test_a_checkpoint_that_needs_more_to_be_converted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RequestError, match=r"has to be converted first.*deepmnn\.convert\("):
        deepmnn.load("tiny-r1", memory=held_nbytes() + MIB)


def test_a_checkpoint_that_is_converted_already_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("deepmnn.conversion.need.BESIDE_NBYTES", 8 * GIB)
    deepmnn.load("tiny-r1", threads=2)
    model = deepmnn.load("tiny-r1", memory="4GiB", threads=2)
    assert model.split is not None
    with pytest.raises(RequestError, match="has to be converted first"):
        deepmnn.load("tiny-r1", memory="4GiB", quant="bf16")


def test_a_calibrated_conversion_needs_more() -> None:
    plain, calibrated = (plan_conversion("tiny-r1", quant) for quant in ("w8", "w4"))
    assert working_nbytes(calibrated) > working_nbytes(plain) + 4 * GIB
    drawn = plan_conversion(PUBLISHED / "DeepSeek-V2-Lite.json", "w4", random_weights=True)
    assert working_nbytes(drawn) < 3 * GIB


def test_logits_of_every_token_come_in_steps_that_fit(small: Path) -> None:
    model = deepmnn.load(small, memory="16GiB", threads=2, max_sequences=3)
    assert model.engine.max_rows == 3
    assert model.logits(list(range(9))).shape == (9, model.vocab_size)
