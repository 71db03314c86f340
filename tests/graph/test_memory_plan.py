"""The memory plan: no two live values share bytes, and reuse really saves."""

import dataclasses

import pytest

from deepmnn.errors import GraphError
from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.levels import MAX_LEVEL, optimize
from deepmnn.graph.passes.memory_plan import EXTERNAL, _best_fit, check_plan, plan_memory
from tiny_models import ALL


@pytest.mark.parametrize(("model_type", "index"), ALL)
@pytest.mark.parametrize("level", [0, MAX_LEVEL])
def test_plans_hold_on_every_model(model_type, index, level, tiny):
    graph = optimize(tiny(model_type, index), level)[0]
    plans = {reuse: plan_memory(graph, reuse) for reuse in (False, True)}
    for plan in plans.values():
        check_plan(graph, plan)
        assert plan.offsets.keys() == graph.values.keys()
        assert all(nbytes % 64 == 0 for nbytes in plan.nbytes.values())
        external = {name for name, offset in plan.offsets.items() if offset == EXTERNAL}
        assert external == {"ids", "positions", "logits"}
    assert plans[True].peak_nbytes(512, 512, 1) < plans[False].peak_nbytes(512, 512, 1) / 2


def chain(length):
    """x → silu → silu → ...: two values live at a time."""
    b = GraphBuilder("chain")
    x = b.embedding(b.ids, "embed", 10, 20)
    for step in range(length):
        x = b.silu(x, f"silu{step}")
    b.output(b.select_rows(x, "rows"), "logits")
    return b.graph


def test_a_chain_needs_two_places():
    plan = plan_memory(chain(9), reuse=True)
    assert plan.nbytes == {"tokens": 2 * 128, "context": 0, "rows": 0}  # 20 floats: 80 → 128 bytes


def test_without_reuse_every_value_has_its_own_place():
    plan = plan_memory(chain(9), reuse=False)
    assert plan.nbytes["tokens"] == 10 * 128
    offsets = [offset for offset in plan.offsets.values() if offset != EXTERNAL]
    assert sorted(offsets) == [128 * place for place in range(10)]


def test_a_value_lives_to_its_last_reader():
    b = GraphBuilder("residual")
    x = b.embedding(b.ids, "embed", 10, 20)
    y = b.silu(b.silu(b.silu(x, "a"), "b"), "c")
    b.output(b.select_rows(b.add(x, y, "sum"), "rows"), "logits")
    plan = plan_memory(b.graph, reuse=True)
    check_plan(b.graph, plan)
    assert plan.nbytes["tokens"] == 3 * 128


def test_the_largest_values_are_placed_first() -> None:
    """In order of execution the first, small one would lie in the way: 64 + 256 + 256 bytes."""
    b = GraphBuilder("widening")
    x = b.linear(b.embedding(b.ids, "embed", 10, 16), "wide", 64)
    b.output(b.select_rows(b.silu(x, "silu"), "rows"), "logits")
    assert plan_memory(b.graph, reuse=True).nbytes["tokens"] == 2 * 256


def test_the_tightest_gap_is_taken() -> None:
    spans = [(0, 64), (192, 256), (320, 384), (640, 704)]
    assert [_best_fit(spans, size) for size in (64, 128, 192, 320)] == [256, 64, 384, 704]


def test_an_unread_value_still_has_a_place():
    graph = chain(2)
    b_silu = graph.nodes[1]
    graph.nodes.insert(2, dataclasses.replace(b_silu, outputs=("unread",), name="unread"))
    graph.values["unread"] = dataclasses.replace(graph.values["silu0"], name="unread")
    plan = plan_memory(graph, reuse=True)
    check_plan(graph, plan)
    assert plan.nbytes["tokens"] == 3 * 128


@pytest.mark.parametrize(
    ("name", "offset", "complaint"),
    [
        ("silu0", None, "silu0"),
        ("silu1", "of silu0", "share bytes"),
        ("silu1", 32, "multiple of 64"),
        ("silu1", 1 << 20, "within"),
        ("silu1", EXTERNAL, "a place"),
        ("logits", 0, "a place"),
    ],
)
def test_the_checker_finds_bad_plans(name, offset, complaint):
    graph = chain(3)
    plan = plan_memory(graph, reuse=True)
    offsets = dict(plan.offsets)
    if offset is None:
        del offsets[name]
    else:
        offsets[name] = offsets["silu0"] if offset == "of silu0" else offset
    with pytest.raises(GraphError, match=complaint):
        check_plan(graph, dataclasses.replace(plan, offsets=offsets))
