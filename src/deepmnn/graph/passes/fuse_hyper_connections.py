"""What hyper-connections do before a block and after it becomes one op each.

x ─┬─ rms_norm ─ linear ─ split ─┬─ gain ─ bias_add ─ sigmoid ─ add_constant ─┐
   │                             ├─ gain ─ bias_add ─ sigmoid ─ scale ─ post  │
   │                             └─ gain ─ bias_add ─ sinkhorn ─ comb         │
   └───────────────────────────────────────────────────────────────────────── mix ─ rms_norm ─ y

                        →   x ─ hyper_in ─ y, post, comb

post, out ─ mix ─┐
                 add ─ y           →   out, post, comb, x ─ hyper_out ─ y
comb, x ─── mix ─┘
"""

from __future__ import annotations

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, add_weight, apply
from deepmnn.graph.weights import Concat


def run(graph: Graph) -> int:
    """Returns the number of fused ops."""
    view = View(graph)
    rewrites: list[Rewrite] = []
    for node in graph.nodes:
        if node.op == "sinkhorn":
            found = _enter(graph, view, node)
        elif node.op == "add":
            found = _leave(graph, view, node)
        else:
            continue
        if found is not None:
            rewrites.append(found)
    return apply(graph, view, rewrites)


def _enter(graph: Graph, view: View, sinkhorn: Node) -> Rewrite | None:
    bias = view.producer(sinkhorn.inputs[0], "bias_add")
    gain = view.producer(bias.inputs[0], "gain") if bias else None
    split = view.producer(gain.inputs[0], "split") if gain else None
    linear = view.producer(split.inputs[0], "linear") if split else None
    normed = view.producer(linear.inputs[0], "rms_norm") if linear else None
    size = sinkhorn.int_attr("size")
    if bias is None or gain is None or split is None or linear is None or normed is None:
        return None
    if split.attrs["sizes"] != (size, size, size * size) or split.attrs["heads"] != 1:
        return None
    pre = _chain(view, split.outputs[0], "gain", "bias_add", "sigmoid", "add_constant", "mix")
    post = _chain(view, split.outputs[1], "gain", "bias_add", "sigmoid", "scale")
    if pre is None or post is None or post[-1].attrs["factor"] != 2.0:
        return None
    mix = pre[-1]
    norm = view.reader(mix.outputs[0], "rms_norm")
    x = view.source(normed.inputs[0])
    eps = {sinkhorn.attrs["eps"], pre[-2].attrs["constant"]}
    if norm is None or not norm.weights or normed.weights or len(eps) != 1:
        return None
    if view.source(mix.inputs[1]) != x or mix.attrs["rows"] != 1:
        return None
    norms = (normed, norm)
    if norm.attrs["eps"] != normed.attrs["eps"] or any(n.attrs["heads"] != 1 for n in norms):
        return None
    outputs = (*norm.outputs, *post[-1].outputs, *sinkhorn.outputs)
    nodes = [*norms, linear, split, *pre, *post, gain, bias, sinkhorn]
    if len(linear.weights) != 1 or not view.encloses(nodes, outputs):
        return None
    scales, bases = [pre[0], post[0], gain], [pre[1], post[1], bias]
    if any(graph.weights[node.weights[0]].shape != (1,) for node in scales):
        return None
    attrs: dict[str, Attr] = {
        "streams": size,
        "iterations": sinkhorn.attrs["iterations"],
        "eps": sinkhorn.attrs["eps"],
        "norm_eps": norm.attrs["eps"],
    }
    weights = (
        linear.weights[0],
        _joined(graph, scales, f"{linear.name}.scales"),
        _joined(graph, bases, f"{linear.name}.bases"),
        norm.weights[0],
    )
    return Rewrite(nodes, Node("hyper_in", (x,), outputs, weights, attrs, norm.name))


def _chain(view: View, value: str, *ops: str) -> list[Node] | None:
    """The nodes that read a value, one after another, each the only reader of what is before."""
    nodes: list[Node] = []
    for op in ops:
        node = view.reader(value, op)
        if node is None:
            return None
        nodes.append(node)
        value = node.outputs[0]
    return nodes


def _joined(graph: Graph, nodes: list[Node], name: str) -> str:
    """The vectors of some nodes as one."""
    parts = [graph.weights[node.weights[0]] for node in nodes]
    return add_weight(graph, parts[0], name, Concat(tuple(part.expr for part in parts)))


def _leave(graph: Graph, view: View, add: Node) -> Rewrite | None:
    mixes = [view.producer(x, "mix") for x in add.inputs]
    ways = [mix.attrs["transposed"] if mix else None for mix in mixes]
    if sorted(ways, key=str) != [0, 1]:
        return None
    expand, mix = (mixes[ways.index(way)] for way in (0, 1))
    if expand is None or mix is None or expand.attrs["rows"] != mix.attrs["rows"]:
        return None
    if graph.values[expand.inputs[0]].width != expand.attrs["rows"]:
        return None  # not one column
    nodes = [expand, mix, add]
    if not view.encloses(nodes, add.outputs):
        return None
    inputs = (expand.inputs[1], expand.inputs[0], mix.inputs[0], mix.inputs[1])
    sources = tuple(view.source(value) for value in inputs)
    attrs: dict[str, Attr] = {"streams": mix.attrs["rows"]}
    return Rewrite(nodes, Node("hyper_out", sources, add.outputs, (), attrs, add.name))
