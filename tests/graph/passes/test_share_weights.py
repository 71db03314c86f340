"""share_weights: what it writes, and what it must leave alone."""

import numpy as np

from deepmnn.graph.passes import share_weights
from deepmnn.graph.tensors import tensor_shapes
from small_graphs import WIDTH, Start, Table, experts, route


def test_share_weights_merges_equal_expressions_into_the_better_role():
    b = Start()
    graph = b.end(b.x)
    graph.weights["head.weight"].expr = graph.weights["embed.weight"].expr
    assert share_weights.run(graph) == 1
    assert graph.nodes[0].weights == graph.nodes[-1].weights == ("embed.weight",)
    assert graph.weights["embed.weight"].role == "lm_head"


def test_share_weights_finds_equal_content():
    b = Start()
    a, c, d = (b.linear(b.x, name, WIDTH) for name in "acd")
    graph = b.end(a, c, d)
    random = np.random.default_rng(0)
    tables = {
        weight.expr.name: random.standard_normal(weight.shape, np.float32)
        for weight in graph.weights.values()
    }
    tables["model.d.weight"] = tables["model.a.weight"].copy()
    tables["model.c.weight"] = tables["model.a.weight"].copy()
    tables["model.c.weight"][-1, -1] += 1e-6
    assert share_weights.run(graph, Table(**tables)) == 1
    assert [n.weights for n in graph.nodes if n.op == "linear"][:3] == [
        ("a.weight",),
        ("c.weight",),
        ("a.weight",),
    ]


class Sampled(Table):
    """Tensors with one digest, and one sample for those of some names."""

    def __init__(self, sample, *names):
        super().__init__()
        self._sample, self._names = sample, {f"model.{name}" for name in names}
        self.compared = []

    def sample(self, name):
        return self._sample if name in self._names else name.encode()

    def digest(self, name):
        self.compared.append(name)
        return b"equal"


def test_share_weights_compares_only_what_may_be_equal():
    b = Start()
    graph = b.end(*(b.linear(b.x, name, WIDTH) for name in "acd"))
    source = Sampled(b"same", "a.weight", "c.weight")
    assert share_weights.run(graph, source) == 1
    assert sorted(source.compared) == ["model.a.weight", "model.c.weight"]


def test_share_weights_takes_no_filler_for_a_copy():
    """A file that is all zeros would have to be read from beginning to end."""
    b = Start()
    graph = b.end(*(b.linear(b.x, name, WIDTH) for name in "acd"))
    source = Sampled(bytes(8), "a.weight", "c.weight", "d.weight")
    assert share_weights.run(graph, source) == 0
    assert source.compared == []


def test_share_weights_keeps_storage_formats_apart():
    b = Start()
    graph = b.end(b.linear(b.x, "a", WIDTH), b.linear(b.x, "c", WIDTH), b.linear(b.x, "d", WIDTH))
    weights = graph.weights
    for name in ("c", "d"):
        weights[f"{name}.weight"].expr = weights["a.weight"].expr
    for name, format in (("a", "w4"), ("c", "bf16"), ("d", "w5")):
        weights[f"{name}.weight"].format = format
    assert share_weights.run(graph) == 0


def test_share_weights_reads_no_expert_without_samples():
    """They are most of a checkpoint: reading them to compare would cost as much as converting."""
    b = Start()
    graph = b.end(experts(b, *route(b)))

    shapes = tensor_shapes(graph)
    tables = {name: np.zeros(shape) for name, shape in shapes.items() if "experts" not in name}
    assert share_weights.run(graph, Table(**tables)) == 1  # the embedding and the head
