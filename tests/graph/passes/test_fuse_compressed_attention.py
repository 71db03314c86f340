"""What fuse_compressed_attention takes for one of the three attentions, and what not."""

from collections.abc import Callable

import pytest

from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Graph, Node
from deepmnn.graph.passes import fuse_compressed_attention
from deepmnn.graph.verify import verify
from deepmnn.models import build
from tiny_models import CONFIGS

OPS = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")


def model() -> Graph:
    return build({"model_type": "deepseek_v4", **CONFIGS["deepseek_v4"][0]})


def layer(graph: Graph, op: str, index: int) -> Node:
    found = [n for n in graph.nodes if n.op == op and n.name.startswith(f"layers.{index}.")]
    return found[0]


def test_every_kind() -> None:
    graph = model()
    assert fuse_compressed_attention.run(graph) == 4
    verify(graph)
    assert [graph.op_counts()[op] for op in OPS] == [1, 2, 1]
    assert not {"cache", "compress", "select_keys", "window_attention", "rope"} & (
        graph.op_counts().keys()
    )


def test_what_the_cache_keeps() -> None:
    graph = model()
    fuse_compressed_attention.run(graph)
    assert {n: e for n, e in graph.caches.items() if n.startswith("layers.1.")} == {
        "layers.1.window": CacheEntry(20, window=5),
        "layers.1.compressor.kv.rows": CacheEntry(80, window=8, exact=True),
        "layers.1.compressor.kv.entries": CacheEntry(20, ratio=4),
        "layers.1.indexer.kv.rows": CacheEntry(48, window=8, exact=True),
        "layers.1.indexer.kv.entries": CacheEntry(12, ratio=4),
    }
    assert graph.caches["layers.2.compressor.kv.rows"] == CacheEntry(40, window=128, exact=True)


def test_entries_of_any_name_stay_apart() -> None:
    graph, other = model(), model()
    names = {name: f"c{number}" for number, name in enumerate(graph.caches)}
    graph.caches = {names[name]: entry for name, entry in graph.caches.items()}
    for node in graph.nodes:
        if node.op == "cache":
            node.attrs["cache"] = names[str(node.attrs["cache"])]
    for each in (graph, other):
        fuse_compressed_attention.run(each)
        verify(each)
    kept = [sorted(map(repr, each.caches.values())) for each in (graph, other)]
    assert kept[0] == kept[1]


def change(op: str, index: int, **attrs: object) -> Callable[[Graph], None]:
    return lambda graph: layer(graph, op, index).attrs.update(attrs)  # type: ignore[arg-type]


UNLIKE: dict[str, Callable[[Graph], object]] = {
    "another eps": lambda graph: [
        node.attrs.update(eps=0.5)
        for node in graph.nodes
        if node.name == "layers.0.self_attn.kv_norm"
    ],
    "another rotation": change("rope", 0, rope_scale=2.0),
    "the indexer's ratio": change("select_keys", 1, ratio=2),
    "the other pairs": change("rope", 2, interleaved=0),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_differs_is_left(what: str) -> None:
    graph = model()
    UNLIKE[what](graph)
    if what == "another eps":
        norms = [
            n for n in graph.nodes if n.op == "rms_norm" and n.name.endswith("0.self_attn.kv_norm")
        ]
        norms[0].attrs["eps"] = 0.5
    assert fuse_compressed_attention.run(graph) == 3
    assert graph.op_counts()["window_attention"] == 1
    verify(graph)


def test_a_value_that_others_read_is_left() -> None:
    graph = model()
    graph.outputs.append(layer(graph, "window_attention", 0).outputs[0])
    assert fuse_compressed_attention.run(graph) == 3
