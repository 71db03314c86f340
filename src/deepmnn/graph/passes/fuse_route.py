"""The routing chain of a mixture of experts becomes one op.

logits ─ softmax | ... ─────┬─ [bias_add] ─ [group_limit] ─ top_k ─┬─ indices
                            └───────────────────────────────────── gather ─┐
                                       weights ─ [scale] ─ [normalize] ────┘

                        →   logits ─ route ─┬─ indices
                                            └─ weights

A lookup of the token's id in the place of top_k gives hash_route, which reads the ids, too.
"""

from __future__ import annotations

from deepmnn.graph.ir import Attr, Graph, Node
from deepmnn.graph.rewrite import Rewrite, View, apply

SCORINGS = {"softmax": "softmax", "sigmoid": "sigmoid", "sqrt_softplus": "sqrtsoftplus"}
"""Op → what config.json calls it."""


def run(graph: Graph) -> int:
    """Returns the number of fused routers."""
    view = View(graph)
    kinds = {"top_k": _match, "lookup": _match_hashed}
    found = (kinds[node.op](view, node) for node in graph.nodes if node.op in kinds)
    return apply(graph, view, [rewrite for rewrite in found if rewrite])


def _match(view: View, top_k: Node) -> Rewrite | None:
    group = view.producer(top_k.inputs[0], "group_limit")
    choice = group.inputs[0] if group else top_k.inputs[0]
    bias = view.producer(choice, "bias_add")
    scoring = view.producer(bias.inputs[0] if bias else choice, *SCORINGS)
    gather = _gather(view, top_k)
    if scoring is None or gather is None:
        return None
    # The weights are the unbiased scores; group_limit leaves a chosen expert's score as it is.
    scores = {scoring.outputs[0]} | ({top_k.inputs[0]} if bias is None else set())
    if view.source(gather.inputs[0]) not in {view.source(value) for value in scores}:
        return None
    normalize, scale = _after(view, gather)
    last = scale or normalize or gather
    outputs = (top_k.outputs[0], last.outputs[0])
    chain = (scoring, bias, group, top_k, gather, normalize, scale)
    nodes = [node for node in chain if node]
    if not view.encloses(nodes, outputs):
        return None
    attrs: dict[str, Attr] = {
        "scoring": SCORINGS[scoring.op],
        "n_group": group.attrs["n_group"] if group else 1,
        "topk_group": group.attrs["topk_group"] if group else 1,
        "group_score": group.attrs["group_score"] if group else "max",
        "top_k": top_k.attrs["top_k"],
        **_weighing(normalize, scale),
    }
    logits = view.source(scoring.inputs[0])
    name = f"{scoring.name.rpartition('.')[0]}.route".removeprefix(".")
    new = Node("route", (logits,), outputs, bias.weights if bias else (), attrs, name)
    return Rewrite(nodes, new)


def _match_hashed(view: View, lookup: Node) -> Rewrite | None:
    """The ids choose: the scores only weigh."""
    gather = _gather(view, lookup)
    scoring = view.producer(gather.inputs[0], *SCORINGS) if gather else None
    if gather is None or scoring is None:
        return None
    normalize, scale = _after(view, gather)
    outputs = (lookup.outputs[0], (scale or normalize or gather).outputs[0])
    nodes = [node for node in (scoring, lookup, gather, normalize, scale) if node]
    if not view.encloses(nodes, outputs):
        return None
    attrs: dict[str, Attr] = {
        "scoring": SCORINGS[scoring.op],
        **lookup.attrs,
        **_weighing(normalize, scale),
    }
    inputs = (view.source(scoring.inputs[0]), lookup.inputs[0])
    name = f"{scoring.name.rpartition('.')[0]}.route".removeprefix(".")
    return Rewrite(nodes, Node("hash_route", inputs, outputs, lookup.weights, attrs, name))


def _after(view: View, gather: Node) -> tuple[Node | None, Node | None]:
    """What weights go through: normalize and scale, each if it is there."""
    normalize = view.reader(gather.outputs[0], "normalize")
    return normalize, view.reader((normalize or gather).outputs[0], "scale")


def _weighing(normalize: Node | None, scale: Node | None) -> dict[str, Attr]:
    return {
        "normalize": int(normalize is not None),
        "eps": normalize.attrs["eps"] if normalize else 0.0,
        "factor": scale.attrs["factor"] if scale else 1.0,
    }


def _gather(view: View, top_k: Node) -> Node | None:
    """The only node that gathers by these indices."""
    indices = top_k.outputs[0]
    found = [node for node in view.readers(indices) if node.op == "gather"]
    return found[0] if len(found) == 1 else None
