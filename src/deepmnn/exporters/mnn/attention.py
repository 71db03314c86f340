"""Attention on MNN: its op rotates nothing, scales by 1/√head_dim, and keeps keys and values.

So what the model asks beyond that is put into the operands: pairs half a head apart (the rows of
interleaved ones are reordered), the softmax scale in q, and keys and values of equal head size
(the shorter are padded with zeros).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from deepmnn.exporters.mnn import rotary
from deepmnn.exporters.mnn.lower import Lowering
from deepmnn.exporters.mnn.values import K_TURNED, LATENT, Q_LINEAR, Q_TURNED, beside
from deepmnn.exporters.mnn.weights import Rows
from deepmnn.graph.ir import Node
from deepmnn.graph.signatures import padded
from deepmnn.graph.weights import F32


def rope(low: Lowering, node: Node) -> None:
    """Of one value, in plain ops; the pairs come out half a head apart."""
    heads = node.int_attr("heads")
    size = low.width(node.inputs[0]) // heads
    x = low.model.reshape(low.plain(node.inputs[0]), (-1, heads, size))
    if node.attrs["interleaved"]:
        pairs = low.model.reshape(x, (-1, heads, size // 2, 2))
        x = low.model.reshape(low.model.permute(pairs, (0, 1, 3, 2)), (-1, heads, size))
    turned = rotary.rotate(low, x, size, rotary.tables(low, node))
    low.set_plain(node.outputs[0], low.model.reshape(turned, (-1, heads * size)))


def attention(low: Lowering, node: Node) -> None:
    """Plain q, k and v."""
    heads, kv_heads = node.int_attr("heads"), node.int_attr("kv_heads")
    dims = (node.int_attr("head_dim"), node.int_attr("head_dim"), node.int_attr("v_head_dim"))
    q, k, v = (
        low.model.reshape(low.plain(x), (1, -1, count, dim))
        for x, count, dim in zip(node.inputs, (heads, kv_heads, kv_heads), dims, strict=True)
    )
    shape = _Heads(heads, kv_heads, dims[0], dims[2])
    v = _widened(low, v, dims[2], shape.size)
    _finish(low, node, _attend(low, node, (q, k, v), shape), shape)


def gqa_attention(low: Lowering, node: Node) -> None:
    """q, k and v straight from their projections; MNN's RoPE op norms and turns q and k."""
    heads, kv_heads = node.int_attr("heads"), node.int_attr("kv_heads")
    dim, v_dim = node.int_attr("head_dim"), node.int_attr("v_head_dim")
    order = np.arange(dim)
    if node.attrs["interleaved"]:
        order = np.concatenate([order[::2], order[1::2]])
    q = low.project(node.inputs[0], _per_head(order, heads, dim))
    k = low.project(node.inputs[1], _per_head(order, kv_heads, dim))
    v_order = np.concatenate([np.arange(v_dim), np.full(max(0, dim - v_dim), -1)])
    v = low.project(node.inputs[2], _per_head(v_order, kv_heads, v_dim))
    norms = {}
    for name, weight in zip(("q_norm", "k_norm"), node.weights, strict=False):
        gamma = low.values(weight)[order].tolist()
        norms[name] = {
            "axis": [-1],
            "epsilon": node.float_attr("eps"),
            "gamma": gamma,
            "useRMSNorm": True,
        }
    angles = rotary.tables(low, node)
    turned = low.model.rope((q, k, *angles), (heads, kv_heads), dim, dim, norms)
    for tensor, name in zip(turned, (Q_TURNED, K_TURNED), strict=True):
        low.name(tensor, beside(node, name))
    shape = _Heads(heads, kv_heads, dim, v_dim)
    _finish(low, node, _attend(low, node, (*turned, v), shape), shape)


def mla_attention(low: Lowering, node: Node) -> None:
    """Latent attention, expanded: MNN caches every head's keys and values; absorbed: latents."""
    a: Any = node.attrs
    heads, rank = a["heads"], a["kv_lora_rank"]
    nope, pe = a["qk_nope_head_dim"], a["qk_rope_head_dim"]
    turned, still = np.arange(pe), np.arange(nope)
    if a["interleaved"]:
        turned = np.concatenate([turned[::2], turned[1::2]])
    q_rows = _per_head(np.concatenate([nope + turned, still]), heads, nope + pe)
    q = low.project(node.inputs[0], q_rows)
    low.name(q, beside(node, Q_LINEAR))
    # MNN's RoPE op wants q and k of one head size: the shared key's head is filled with zeros.
    k_rows = np.concatenate([rank + turned, np.full(nope, -1)])
    k_pe = low.project(node.inputs[1], k_rows, ".rope")
    latent = low.project(node.inputs[1], np.arange(rank), ".latent")
    latent = low.model.rms_norm((latent,), low.norm(node.weights[0]), a["eps"])[0]
    angles = rotary.tables(low, node)
    q, k_pe = low.model.rope((q, k_pe, *angles), (heads, 1), nope + pe, pe, {})
    for tensor, name in ((q, Q_TURNED), (k_pe, K_TURNED), (latent, LATENT)):
        low.name(tensor, beside(node, name))
    k_pe, _ = low.model.split(k_pe, (pe, nope), 3)  # [1, tokens, 1, pe]
    form = _absorbed if low.mla_form == "absorbed" else _expanded
    form(low, node, q, k_pe, latent)


def _expanded(low: Lowering, node: Node, q: int, k_pe: int, latent: int) -> None:
    a: Any = node.attrs
    heads, nope, pe, v = (
        a[key] for key in ("heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    name = f"/{node.name}"
    w_uk, w_uv = node.weights[1], node.weights[2]
    k_rows = _per_head(np.arange(nope), heads, padded(nope))
    k_nope = low.linear(low.model, latent, (w_uk, k_rows, None), name + ".k")
    k_nope = low.model.reshape(low.model.unpack(k_nope), (1, -1, heads, nope))
    k = low.model.concat([low.model.concat([k_pe] * heads, 2), k_nope], 3)
    shape = _Heads(heads, heads, nope + pe, v)
    v_order = np.concatenate([np.arange(v), np.full(shape.size - v, -1)])
    v_rows = _per_head(v_order, heads, padded(v))
    value = low.linear(low.model, latent, (w_uv, v_rows, None), name + ".v")
    _finish(low, node, _attend(low, node, (q, k, value), shape), shape)


def _absorbed(low: Lowering, node: Node, q: int, k_pe: int, latent: int) -> None:
    a: Any = node.attrs
    heads, rank = a["heads"], a["kv_lora_rank"]
    nope, pe, v = a["qk_nope_head_dim"], a["qk_rope_head_dim"], a["v_head_dim"]
    model = low.model
    q_pe, q_nope = model.split(q, (pe, nope), 3)
    w_uk = low.values(node.weights[1]).reshape(heads, -1, rank)[:, :nope]  # [heads, nope, rank]
    q_latent = _per_head_matmul(low, q_nope, w_uk)
    q = model.concat([q_latent, q_pe], 3)  # [1, tokens, heads, rank + pe]
    latent = model.reshape(model.unpack(latent), (1, -1, 1, rank))
    k = model.concat([latent, k_pe], 3)
    shape = _Heads(heads, 1, rank + pe, rank)
    out = _attend(low, node, (q, k, _widened(low, latent, rank, rank + pe)), shape)
    latent_out = model.reshape(_cut(low, out, shape), (1, -1, heads, rank))
    w_uv = low.values(node.weights[2]).reshape(heads, -1, rank)[:, :v].transpose(0, 2, 1)
    out = _per_head_matmul(low, latent_out, w_uv)
    low.set_plain(node.outputs[0], model.reshape(out, (-1, heads * v)))


def _per_head_matmul(low: Lowering, x: int, weight: F32) -> int:
    """[1, tokens, heads, m] times [heads, m, n] → [1, tokens, heads, n]."""
    stored = low.constant(np.ascontiguousarray(weight)[None])
    by_head = low.model.matmul(low.model.permute(x, (0, 2, 1, 3)), stored)
    return low.model.permute(by_head, (0, 2, 1, 3))


@dataclass(frozen=True)
class _Heads:
    """How many, and of what size; MNN wants keys and values of one size."""

    heads: int
    kv_heads: int
    dim: int
    v_dim: int

    @property
    def size(self) -> int:
        return max(self.dim, self.v_dim)


def _attend(low: Lowering, node: Node, qkv: tuple[int, ...], shape: _Heads) -> int:
    """→ packed [tokens, heads · size]. q and k have heads of `dim`, v has been widened already."""
    q, k = (_widened(low, x, shape.dim, shape.size) for x in qkv[:2])
    factor = node.float_attr("scale") * shape.size**0.5  # what the scale has beyond MNN's own
    if abs(factor - 1.0) > 1e-6:
        q = low.model.binary("MUL", q, low.model.floats(np.array([factor], np.float32)))
    layer = low.next_attention(2 * shape.kv_heads * shape.size)
    return low.model.attention((q, k, qkv[2], low.mask), layer, f"/{node.name}")


def _finish(low: Lowering, node: Node, out: int, shape: _Heads) -> None:
    """The node's output, every head cut to v_dim."""
    if shape.size == shape.v_dim:
        low.set_packed(node.outputs[0], out)
        return
    value = _cut(low, out, shape)
    low.set_plain(node.outputs[0], low.model.reshape(value, (-1, shape.heads * shape.v_dim)))


def _cut(low: Lowering, out: int, shape: _Heads) -> int:
    """→ plain [tokens, heads, v_dim]."""
    plain = low.model.reshape(low.model.unpack(out), (-1, shape.heads, shape.size))
    return low.model.split(plain, (shape.v_dim, shape.size - shape.v_dim), 2)[0]


def _widened(low: Lowering, x: int, dim: int, size: int) -> int:
    """Plain [1, tokens, heads, dim] with zeros up to `size`."""
    return low.model.pad(x, (0, 0, 0, 0, 0, 0, 0, size - dim)) if dim < size else x


def _per_head(order: Rows, heads: int, stride: int) -> Rows:
    """The same rows of every head, heads `stride` rows apart; negative rows stay as they are."""
    starts = np.arange(heads)[:, None] * stride
    return np.where(order[None] < 0, -1, starts + order[None]).reshape(-1)
