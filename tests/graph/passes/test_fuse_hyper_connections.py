"""What fuse_hyper_connections joins, and what not."""

from collections.abc import Callable

import pytest

from deepmnn.graph.ir import Graph
from deepmnn.graph.passes import fuse_hyper_connections
from deepmnn.graph.verify import verify
from deepmnn.models import build
from tiny_models import CONFIGS

BLOCKS = 8


def model() -> Graph:
    return build({"model_type": "deepseek_v4", **CONFIGS["deepseek_v4"][0]})


def test_both_ends_of_every_block() -> None:
    graph = model()
    assert fuse_hyper_connections.run(graph) == 2 * BLOCKS
    verify(graph)
    counts = graph.op_counts()
    assert counts["hyper_in"] == counts["hyper_out"] == BLOCKS
    assert counts["mix"] == counts["gain"] == 1  # of the head
    assert "sinkhorn" not in counts


def change(name: str, **attrs: object) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        (node,) = [node for node in graph.nodes if node.name == f"layers.1.{name}"]
        node.attrs.update(attrs)  # type: ignore[arg-type]

    return edit


UNLIKE = {
    "another factor": change("attn_hc.post", factor=3.0),
    "another eps of the sum": change("attn_hc.pre", constant=0.5),
    "another eps of a norm": change("input_layernorm", eps=0.5),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_what_differs_is_left(what: str) -> None:
    graph = model()
    UNLIKE[what](graph)
    assert fuse_hyper_connections.run(graph) == 2 * BLOCKS - 1
    verify(graph)


def test_streams_that_others_read_stay() -> None:
    """An output of the model is no reason against: its rows are those of the last hyper_out."""
    graph = build({"model_type": "deepseek_v4", **CONFIGS["deepseek_v4"][0]}, ("logits", "streams"))
    assert fuse_hyper_connections.run(graph) == 2 * BLOCKS
    verify(graph)
    made = graph.producers()
    assert made[made["streams"].inputs[0]].op == "hyper_out"
