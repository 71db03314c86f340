"""Small graphs built by hand, and how the tests of passes look into them."""

from deepmnn.graph.builder import GraphBuilder
from deepmnn.graph.verify import verify

WIDTH = 12


class Start(GraphBuilder):
    """A builder with an embedding to start from and a head to end in."""

    def __init__(self):
        super().__init__("test")
        self.x = self.embedding(self.ids, "embed", 50, WIDTH)

    def end(self, *values):
        """Adds the values up, selects rows and makes logits."""
        total = values[0]
        for number, value in enumerate(values[1:]):
            total = self.add(total, value, f"total{number}")
        rows = self.select_rows(total, "rows")
        self.output(self.linear(rows, "head", 50, role="lm_head"), "logits")
        verify(self.graph)
        return self.graph


def ops(graph):
    return [node.op for node in graph.nodes if node.name not in ("embed", "rows", "head")]


def node(graph, op):
    (found,) = [node for node in graph.nodes if node.op == op]
    return found


def named(graph, name):
    return next(node for node in graph.nodes if node.name == name)


ANOTHER_ROTATION = [
    lambda rope: rope.attrs.update(rope_scale=2.0),
    lambda rope: rope.attrs.update(interleaved=1 - rope.attrs["interleaved"]),
    lambda rope: setattr(rope, "inputs", (rope.inputs[0], "ids")),
]


class Table:
    """A TensorSource over a dict."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def read(self, name):
        return self.arrays[name]


def route(b, scoring="sigmoid", bias=True, groups=True, normalize=True, factor=2.5):
    logits = b.linear(b.x, "mlp.gate", 8, role="router")
    scores = choice = getattr(b, scoring)(logits, "mlp.gate.scores")
    if bias:
        choice = b.bias_add(choice, "mlp.gate.bias")
    if groups:
        choice = b.group_limit(choice, "mlp.gate.groups", 4, 2, "top2_sum")
    indices = b.top_k(choice, "mlp.gate.top_k", 3)
    weights = b.gather(scores, indices, "mlp.gate.gather")
    if normalize:
        weights = b.normalize(weights, "mlp.gate.normalize", 1e-20)
    return indices, b.scale(weights, "mlp.gate.scale", factor) if factor else weights


def experts(b, indices, weights, up_x=None):
    gate = b.expert_linear(b.x, indices, "experts", "gate", 8, 5, per_choice=False)
    up = b.expert_linear(up_x or b.x, indices, "experts", "up", 8, 5, per_choice=False)
    y = b.mul(b.silu(gate, "experts.silu"), up, "experts.mul")
    y = b.expert_linear(y, indices, "experts", "down", 8, WIDTH, per_choice=True)
    return b.combine(y, weights, "experts.combine")
