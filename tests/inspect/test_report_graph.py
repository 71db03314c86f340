"""Graphs by layers, what passes did to them, and where everything is drawn."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from deepmnn.graph.ir import Graph
from deepmnn.graph.levels import PassResult, optimize
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.inspect.report.blocks import AFTER, BEFORE, Block, by_place, places_named
from deepmnn.inspect.report.kinds import KINDS, kind
from deepmnn.inspect.report.layered import GAP, Edge, arrange
from deepmnn.inspect.report.picture import picture
from deepmnn.inspect.report.trace import Snapshot, Trace
from deepmnn.models import build
from tiny_models import ALL, CONFIGS


def tiny(model_type: str, index: int, **more: int) -> Graph:
    return build({"model_type": model_type, **CONFIGS[model_type][index], **more})


# --------------------------------------------------------------------------------- by layers


@pytest.mark.parametrize(
    ("places", "name"),
    [
        ([0], "layer 0"),
        ([1, 0], "layers 0 and 1"),
        ([0, 1, 2], "layers 0 to 2"),
        ([0, 2, 3, 5, 6, 7, 9], "layers 0, 2, 3, 5 to 7 and 9"),
        ([BEFORE], "before the layers"),
        ([AFTER], "after the layers"),
    ],
)
def test_names_of_places(places: list[int], name: str) -> None:
    assert places_named(places) == name


def test_layers_that_are_alike_are_one_block() -> None:
    graph = tiny("deepseek_v3", 0, num_hidden_layers=6, first_k_dense_replace=2)
    places = by_place(graph)
    assert [node for nodes in places.values() for node in nodes] == graph.nodes
    assert list(places) == [BEFORE, 0, 1, 2, 3, 4, 5, AFTER]
    assert [node.name for node in places[BEFORE]] == ["embed_tokens"]
    blocks = Snapshot(graph).blocks
    assert [block.title for block in blocks] == [
        *("before the layers", "layers 0 and 1", "layers 2 to 5", "after the layers")
    ]
    assert blocks[2].shown == 4
    norm = next(node for node in places[3] if "eps" in node.attrs)
    norm.attrs["eps"] = 0.5
    titles = [block.title for block in Snapshot(graph).blocks]
    assert titles[2:4] == ["layers 2, 4 and 5", "layer 3"]


def test_formats_and_names_of_weights_do_not_part_layers() -> None:
    graph = tiny("qwen3", 0, num_hidden_layers=4)
    for name, weight in graph.weights.items():
        if name.startswith("layers.2.") and weight.role == "linear":
            weight.format = "bf16"
    assert [block.places for block in Snapshot(graph).blocks] == [
        *((BEFORE,), (0, 1, 2, 3), (AFTER,))
    ]


KIND = {
    "embedding": "table",
    "linear": "matrix",
    "expert_linear": "experts",
    "attention": "attention",
    "cache": "attention",
    "rms_norm": "norm",
    "bias_add": "norm",
    "reshape": "view",
    "swiglu": "matrix",
    "moe": "experts",
    "gqa_attention": "attention",
    "mla_attention": "attention",
    "add_rms_norm": "norm",
    "layer_norm": "norm",
    "gain": "norm",
    "lookup": "norm",
    "compress": "norm",
    "hash_route": "norm",
    "select_keys": "attention",
    "sparse_attention": "attention",
    "sparse_mla_attention": "attention",
    "window_attention": "attention",
    "sliding_attention": "attention",
    "compressed_sparse_attention": "attention",
    "heavily_compressed_attention": "attention",
    "grouped_linear": "matrix",
    "hyper_in": "matrix",
}


def test_every_op_has_a_kind() -> None:
    seen = set()
    for model_type, index in ALL:
        naive = tiny(model_type, index)
        for graph in (naive, optimize(naive, 3)[0]):
            for node in graph.nodes:
                found = kind(graph, node)
                assert found in KINDS
                # a bias or a weight is left out where there is none
                if node.op != "route" and (node.op != "rms_norm" or node.weights):
                    assert found == KIND.get(node.op, "plain"), node.op
                seen.add(node.op)
    assert seen == SIGNATURES.keys()


# ------------------------------------------------------------------------------------ passes


@pytest.mark.parametrize(
    ("model_type", "index"), [("llama", 1), ("qwen2", 2), ("deepseek", 2), ("deepseek_v3", 0)]
)
def test_changes_add_up_to_what_passes_say(model_type: str, index: int) -> None:
    naive, trace = tiny(model_type, index), Trace()
    graph, results = optimize(naive, 3, on_pass=trace.add)
    steps = trace.steps(trace.begin(naive))
    assert [step.result for step in steps] == results
    assert len(steps[0].before.graph.nodes) == len(naive.nodes)
    for step in steps:
        assert len(step.before.graph.nodes) == step.result.nodes_before
        assert len(step.after.graph.nodes) == step.result.nodes_after
        grown = sum(
            len(change.block.places) * (len(change.new) - len(change.gone))
            for change in step.changes
        )
        assert grown == step.result.nodes_after - step.result.nodes_before
        assert bool(step.changes) == bool(step.result.rewrites)
    assert steps[-1].after.graph.nodes == graph.nodes
    assert steps[-1].after.graph.weights == graph.weights


def test_what_a_fusion_did() -> None:
    naive, trace = tiny("llama", 0, num_hidden_layers=4), Trace()
    optimize(naive, 3, on_pass=trace.add)
    steps = {step.result.name: step for step in trace.steps(trace.begin(naive))}
    change, last = steps["fuse_swiglu"].changes  # the last layer computes the wanted rows only
    assert (change.block, last.block) == (Block((0, 1, 2)), Block((3,)))
    assert Counter(node.op for node in change.gone) == {"linear": 2, "silu": 1, "mul": 1}
    assert [node.op for node in change.new] == ["swiglu"]
    around = {node.name for node in change.before} - {node.name for node in change.gone}
    assert around == {"layers.1.post_attention_layernorm", "layers.1.mlp.down_proj"}
    kept = {node.name for node in change.after} - {node.name for node in change.new}
    assert kept == around
    (rows,) = [c for c in steps["select_rows_early"].changes if c.block.places == (3,)]
    assert not rows.gone
    assert {node.op for node in rows.new} == {"select_rows"}
    assert {new.name for _, new in rows.changed} >= {"layers.3.mlp.down_proj"}
    assert not steps["fuse_moe"].changes


def test_on_pass_sees_the_graph_as_it_is_then() -> None:
    seen: list[tuple[str, int]] = []

    def look(graph: Graph, result: PassResult) -> None:
        seen.append((result.name, len(graph.nodes)))

    disabled = frozenset({"fuse_linears"})
    _, results = optimize(tiny("deepseek_v2", 0), 2, disabled=disabled, on_pass=look)
    assert seen == [(result.name, result.nodes_after) for result in results]
    assert "fuse_linears" not in dict(seen)


def test_level_0_has_the_formats_that_were_chosen() -> None:
    naive, trace = tiny("llama", 0), Trace()

    def choose(graph: Graph) -> None:
        for weight in graph.weights.values():
            if weight.role == "linear":
                weight.format = "bf16"

    optimize(naive, 3, choose_formats=choose, on_pass=trace.add)
    begin = trace.begin(naive).graph
    formats = {weight.role: weight.format for weight in begin.weights.values()}
    assert formats["linear"] == "bf16"
    assert formats["embedding"] == naive.weights["embed_tokens.weight"].format
    assert {w.format for w in naive.weights.values() if w.role == "linear"} == {"f32"}


# ---------------------------------------------------------------------------------- drawings


def random_edges(rng: np.random.Generator, items: int) -> list[Edge]:
    pairs = list(combinations(range(items), 2))
    return [pairs[n] for n in rng.permutation(len(pairs))[: items * 3 // 2]]


@pytest.mark.parametrize("seed", range(12))
def test_edges_go_down_and_nothing_overlaps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = rng.uniform(20, 200, 25).tolist()
    edges = random_edges(rng, len(widths))
    found = arrange(widths, edges)
    assert len(found.places) == len(widths)
    for (upper, lower), route in zip(edges, found.routes, strict=True):
        ranks = [found.places[upper][1], *(rank for _, rank in route), found.places[lower][1]]
        assert ranks == list(range(ranks[0], ranks[-1] + 1))
        assert len(ranks) > 1
    taken: dict[int, list[tuple[float, float]]] = {}
    for (x, rank), width in zip(found.places, widths, strict=True):
        taken.setdefault(rank, []).append((x - width / 2, x + width / 2))
    for x, rank in (place for route in found.routes for place in route):
        taken[rank].append((x, x))
    assert len(taken) == found.ranks
    for spans in taken.values():
        spans.sort()
        assert spans[0][0] >= -1e-6
        assert spans[-1][1] <= found.width + 1e-6
        for (_, end), (begin, _) in pairwise(spans):
            assert begin - end >= GAP - 1e-6


def crossings(places: list[tuple[float, int]], edges: list[Edge]) -> int:
    """Of edges between neighbouring ranks."""
    total = 0
    for (a, b), (c, d) in combinations(edges, 2):
        if places[a][1] == places[c][1] and {a, b}.isdisjoint({c, d}):
            total += (places[a][0] - places[c][0]) * (places[b][0] - places[d][0]) < 0
    return total


def test_a_tree_has_no_crossings() -> None:
    rng = np.random.default_rng(3)
    parents = [int(rng.integers(max(0, (n - 1) // 3), n)) for n in range(1, 30)]
    edges = [(parent, n) for n, parent in enumerate(parents, 1)]
    order = rng.permutation(len(edges))
    assert crossings(arrange([40.0] * 30, [edges[n] for n in order]).places, edges) == 0


def test_a_chain_is_upright_and_a_long_edge_passes_beside_it() -> None:
    edges = [(n, n + 1) for n in range(9)] + [(0, 9)]
    found = arrange([60.0] * 10, edges)
    inner = [x for x, _ in found.places[1:-1]]
    assert max(abs(x - y) for x, y in pairwise(inner)) < 3
    beside = [x for x, _ in found.routes[-1]]
    assert len(beside) == 8
    assert max(beside) - min(beside) < 2
    assert min(abs(a - b) for a, b in zip(beside, inner, strict=True)) >= 30 + GAP - 1e-6


def test_nothing_to_draw() -> None:
    assert arrange([], []).ranks == 0
    assert arrange([10.0], []).places == [(5.0, 0)]


@pytest.mark.parametrize("level", [0, 3])
def test_a_picture_has_every_node_and_value(level: int) -> None:
    graph, _ = optimize(tiny("deepseek_v3", 0, num_hidden_layers=4), level)
    shot = Snapshot(graph)
    for block in shot.blocks:
        root = ElementTree.fromstring(picture(shot, block))
        nodes = shot.places[block.shown]
        boxes = [e for e in root.iter("g") if "outside" not in e.attrib["class"]]
        assert [e[0].text.split(":")[0] for e in boxes if e[0].text] == [n.name for n in nodes]
        assert [e.attrib["class"].split()[1] for e in boxes] == [kind(graph, n) for n in nodes]
        own = {name for node in nodes for name in node.outputs}
        read = {name for node in nodes for name in node.inputs}
        said = {line.split(" ")[0] for e in root.iter("path") for line in e[0].text.split("\n")}
        leaving = {
            n for n in own if n in graph.outputs or shot.readers.get(n, set()) - {block.shown}
        }
        assert said == read | leaving
        width = float(root.attrib["width"])
        for rect in root.iter("rect"):
            left, across = float(rect.attrib["x"]), float(rect.attrib["width"])
            assert 0 <= left <= left + across <= width + 0.2


def test_a_box_tells_shapes_attributes_and_all_weights() -> None:
    graph = tiny("deepseek_v3", 0, num_hidden_layers=5)
    for name, weight in graph.weights.items():
        if name.startswith("layers.3.") and weight.role == "expert":
            weight.format = "bf16"
    shot = Snapshot(graph)
    block = next(block for block in shot.blocks if len(block.places) > 1)
    assert block.places == (1, 2, 3, 4)
    texts = [e.text or "" for e in ElementTree.fromstring(picture(shot, block)).iter("title")]
    (said,) = [t for t in texts if t.startswith("layers.3.mlp.experts.down_proj:")]
    lines = said.split("\n")
    assert lines[1] == "[tokens, 3, 19], [tokens, 3] → [tokens, 3, 36]"
    assert lines[2].startswith("36 weights [36, 19] in f32, ")
    assert lines[3].startswith("12 weights [36, 19] in bf16, ")
    assert "top_k: 3" in lines


def test_twins_of_a_node_that_computes_the_layer_befores_sum() -> None:
    graph, _ = optimize(tiny("llama", 0, num_hidden_layers=6), 3)
    shot = Snapshot(graph)
    block = next(block for block in shot.blocks if len(block.places) > 2)
    texts = [e.text or "" for e in ElementTree.fromstring(picture(shot, block)).iter("title")]
    (said,) = [t for t in texts if t.startswith(f"layers.{block.shown}.input_layernorm:")]
    assert f"{len(block.places)} weights [36] in vector, " in said
    assert f"layers.{block.places[0]}.input_layernorm.weight" in said  # the first of them


def test_long_attributes_are_counted() -> None:
    shot = Snapshot(tiny("deepseek_v3", 0))
    texts = [
        e.text or ""
        for block in shot.blocks
        for e in ElementTree.fromstring(picture(shot, block)).iter("title")
    ]
    assert re.search(r"inv_freq: 3$|inv_freq: \d+ numbers|inv_freq: \(", "\n".join(texts), re.M)


def test_hostile_names_are_text() -> None:
    graph = tiny("llama", 0)
    for node in graph.nodes:
        node.name = f"{node.name}</title><script>\x1b"
    shot = Snapshot(graph)
    for block in shot.blocks:
        text = picture(shot, block)
        assert "<script" not in text
        assert "\x1b" not in text
        ElementTree.fromstring(text)
