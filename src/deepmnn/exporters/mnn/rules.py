"""How each op becomes MNN's: op → a function of the lowering and the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from deepmnn.errors import UnsupportedModelError
from deepmnn.exporters.mnn import attention, experts
from deepmnn.exporters.mnn.lower import Lowering, Projection, Rule
from deepmnn.exporters.mnn.values import GATE, UP, beside
from deepmnn.graph.ir import Node

Sizes = tuple[int, ...]


def _embedding(low: Lowering, node: Node) -> None:
    """MNN's runtime looks the rows up and hands them in, [tokens, 1, hidden]."""
    width = low.width(node.outputs[0])
    low.set_packed(
        node.outputs[0], low.model.pack(low.model.reshape(low.embedded, (-1, width, 1, 1)))
    )


def _linear(low: Lowering, node: Node) -> None:
    weight, *bias = node.weights
    start = 0
    for output in node.outputs:
        rows = np.arange(start, start + low.width(output))
        part = "" if len(node.outputs) == 1 else f".{output}"
        name = f"/{node.name}{part}"
        projection = Projection(node.inputs[0], weight, bias[0] if bias else None, rows, name)
        low.defer(output, projection)
        start += low.width(output)


def _rms_norm(low: Lowering, node: Node) -> None:
    (x,), (y,) = node.inputs, node.outputs
    heads, external = node.int_attr("heads"), low.norm(node.weights[0])
    eps = node.float_attr("eps")
    if heads == 1:
        low.set_packed(y, low.model.rms_norm((low.packed(x),), external, eps)[0])
        return
    per_head = low.model.reshape(low.plain(x), (-1, heads, low.width(x) // heads))
    normed = low.model.rms_norm((per_head,), external, eps, packed=False)[0]
    low.set_plain(y, low.model.reshape(normed, (-1, low.width(y))))


def _add_rms_norm(low: Lowering, node: Node) -> None:
    inputs = [low.packed(x) for x in node.inputs]
    made = low.model.rms_norm(inputs, low.norm(node.weights[0]), node.float_attr("eps"))
    for output, tensor in zip(node.outputs, made, strict=True):
        low.set_packed(output, tensor)


def _alias(low: Lowering, node: Node) -> None:
    """reshape moves no data; MNN caches keys and values where attention reads them."""
    low.alias(node.outputs[0], node.inputs[0])


def _split(low: Lowering, node: Node) -> None:
    sizes: Sizes = node.attrs["sizes"]  # type: ignore[assignment]
    heads = node.int_attr("heads")
    x = low.model.reshape(low.plain(node.inputs[0]), (-1, heads, sum(sizes)))
    for output, part in zip(node.outputs, low.model.split(x, sizes, 2), strict=True):
        low.set_plain(output, low.model.reshape(part, (-1, low.width(output))))


def _concat(low: Lowering, node: Node) -> None:
    heads = node.int_attr("heads")
    parts = [
        low.model.reshape(low.plain(x), (-1, heads, low.width(x) // heads)) for x in node.inputs
    ]
    joined = low.model.concat(parts, 2)
    low.set_plain(node.outputs[0], low.model.reshape(joined, (-1, low.width(node.outputs[0]))))


def _broadcast(low: Lowering, node: Node) -> None:
    copies = [low.plain(node.inputs[0])] * node.int_attr("heads")
    low.set_plain(node.outputs[0], low.model.concat(copies, 1))


def _unary(operation: str) -> Rule:
    def rule(low: Lowering, node: Node) -> None:
        _elementwise(low, node, lambda x: low.model.unary(operation, x[0]))

    return rule


def _binary(operation: str) -> Rule:
    def rule(low: Lowering, node: Node) -> None:
        _elementwise(low, node, lambda x: low.model.binary(operation, x[0], x[1]))

    return rule


def _elementwise(low: Lowering, node: Node, apply: Callable[[Sequence[int]], int]) -> None:
    if low.is_packed(node.inputs):
        low.set_packed(node.outputs[0], apply([low.packed(x) for x in node.inputs]))
    else:
        low.set_plain(node.outputs[0], apply([low.plain(x) for x in node.inputs]))


def _scale(low: Lowering, node: Node) -> None:
    factor = low.model.floats(np.array([node.float_attr("factor")], np.float32))
    _elementwise(low, node, lambda x: low.model.binary("MUL", x[0], factor))


def _softmax(low: Lowering, node: Node) -> None:
    low.set_plain(node.outputs[0], low.model.softmax(low.plain(node.inputs[0])))


def _select_rows(low: Lowering, node: Node) -> None:
    """logits_index is 0 (all rows) or -1 (the last one)."""
    x = low.packed(node.inputs[0])
    low.set_packed(node.outputs[0], low.model.slice_from(x, low.wanted, 0))


def _swiglu(low: Lowering, node: Node) -> None:
    weight = (node.weights[0], node.int_attr("intermediate_size"))
    x = low.packed(node.inputs[0])
    gate, up = experts.gate_and_up(low, low.model, x, weight, f"/{node.name}.")
    low.name(gate, beside(node, GATE))
    low.name(up, beside(node, UP))
    low.set_packed(node.outputs[0], low.model.binary("MUL_SILU", up, gate))


def _chosen_keys(low: Lowering, node: Node) -> None:
    """MNN's attention reads every cached row; none of its ops chooses some."""
    raise UnsupportedModelError(
        f"{node.name} is of an attention to keys that an indexer chooses, which MNN cannot run",
        "a model whose tokens attend to all they see, as DeepSeek-V3's do",
        "Run it with deepmnn's own engine.",
    )


def _streams(low: Lowering, node: Node) -> None:
    """MNN has one residual, and attention to every cached row."""
    raise UnsupportedModelError(
        f"{node.name} is of hyper-connections or compressed attention (DeepSeek-V4), which MNN "
        "cannot run",
        "a model with one residual, as DeepSeek-V3 is",
        "Run it with deepmnn's own engine.",
    )


_OF_V4 = (
    *("hyper_in", "hyper_out", "mix", "sinkhorn", "gain", "add_constant"),
    *("hash_route", "lookup", "sqrt_softplus", "clamp", "grouped_linear"),
    *("compress", "window_attention", "sliding_attention"),
    *("heavily_compressed_attention", "compressed_sparse_attention"),
)

RULES: dict[str, Rule] = {
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "reshape": _alias,
    "cache": _alias,
    "split": _split,
    "concat": _concat,
    "broadcast": _broadcast,
    "silu": _unary("SILU"),
    "sigmoid": _unary("SIGMOID"),
    "add": _binary("ADD"),
    "mul": _binary("MUL"),
    "scale": _scale,
    "softmax": _softmax,
    "select_rows": _select_rows,
    "swiglu": _swiglu,
    "rope": attention.rope,
    "attention": attention.attention,
    "gqa_attention": attention.gqa_attention,
    "mla_attention": attention.mla_attention,
    "bias_add": experts.bias_add,
    "group_limit": experts.group_limit,
    "top_k": experts.top_k,
    "gather": experts.gather,
    "normalize": experts.normalize,
    "route": experts.route,
    "moe": experts.moe,
    "layer_norm": _chosen_keys,
    "select_keys": _chosen_keys,
    "sparse_attention": _chosen_keys,
    "sparse_mla_attention": _chosen_keys,
    **dict.fromkeys(_OF_V4, _streams),
}
