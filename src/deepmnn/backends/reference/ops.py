"""The op table: what each op of docs/ops.md does with a node's inputs, weights and attributes.

Fused ops are written with the plain ones they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmnn.backends.base import F32, I32, Batch
from deepmnn.backends.reference import compressed, hyper
from deepmnn.backends.reference import numerics as nx
from deepmnn.backends.reference.cache import PagedCache
from deepmnn.backends.reference.cached_entries import CachedEntries
from deepmnn.formats import BLOCK_ROWS

Array = NDArray[Any]


@dataclass(frozen=True)
class Call:
    """One node at work. x: inputs, w: weights, a: attributes, widths: of the outputs."""

    x: tuple[Array, ...]
    w: tuple[F32, ...]
    a: Mapping[str, Any]
    widths: tuple[int, ...]
    cache: PagedCache
    batch: Batch
    mla_form: str

    def append(self, key: str, x: F32, head: Sequence[int]) -> F32:
        """Appends x to the cache entry named by attribute `key`; returns the context's rows.

        head: as `PagedCache.append` takes it.
        """
        return self.cache.append(self.a[key], x, self.batch, head)

    def rope(self, x: F32, positions: I32, heads: int) -> F32:
        """x rotated as the attributes say."""
        a = self.a
        return nx.rope(x, positions, heads, a["inv_freq"], a["rope_scale"], bool(a["interleaved"]))


def _linear(c: Call) -> tuple[F32, ...]:
    return nx.split(nx.linear(c.x[0], *c.w), c.widths, 1)


def _attention(c: Call) -> F32:
    q, k, v = c.x
    return nx.attention(q, k, v, c.batch, c.a["heads"], c.a["kv_heads"], c.a["scale"])


def _attend_rows(
    c: Call,
    q: F32,
    k: F32,
    v: F32,
    kv_heads: int,
    head: Sequence[int],
    chosen: I32 | None = None,
) -> F32:
    """Attention over the cache's own rows: k, whose heads are `head`, and v are what they hold.

    chosen: rows of each token; None: all it sees.
    """
    heads = c.a["heads"]
    q = c.cache.round_queries(q, heads, kv_heads, head)
    if chosen is not None:
        return nx.sparse_attention(q, k, v, chosen, c.batch, heads, kv_heads, c.a["scale"])
    return nx.attention(q, k, v, c.batch, heads, kv_heads, c.a["scale"])


def _select_keys(c: Call) -> I32:
    q, weights, k = c.x
    return nx.select_keys(q, weights, k, c.batch, c.a["top_k"], c.a["ratio"], c.a["scale"])


def _sparse_attention(c: Call) -> F32:
    q, k, v, rows = c.x
    heads, kv_heads, scale = c.a["heads"], c.a["kv_heads"], c.a["scale"]
    return nx.sparse_attention(q, k, v, rows, c.batch, heads, kv_heads, scale)


def _add_rms_norm(c: Call) -> tuple[F32, F32]:
    total = c.x[0] + c.x[1]
    return total, nx.rms_norm(total, c.w[0], c.a["eps"])


def _swiglu(x: F32, weight: F32, size: int, limit: float) -> F32:
    """silu(gate x) · up x, the two matrices dealt out in blocks of 16 rows; limit 0: none."""
    blocks = weight.reshape(-1, 2, BLOCK_ROWS, weight.shape[1])
    gate, up = (blocks[:, i].reshape(-1, weight.shape[1])[:size] for i in (0, 1))
    gated, upped = nx.linear(x, gate), nx.linear(x, up)
    if limit:
        gated, upped = nx.clamp(gated, limit, False), nx.clamp(upped, limit, True)
    return nx.silu(gated) * upped


def _gqa_attention(c: Call) -> F32:
    a = c.a
    q, k, v, positions = c.x
    if c.w:
        q = nx.rms_norm(q, c.w[0], a["eps"], a["heads"])
        k = nx.rms_norm(k, c.w[1], a["eps"], a["kv_heads"])
    q = c.rope(q, positions, a["heads"])
    head = (a["head_dim"],)
    k = c.append("k_cache", c.rope(k, positions, a["kv_heads"]), head)
    v = c.append("v_cache", v, (a["v_head_dim"],))
    return _attend_rows(c, q, k, v, a["kv_heads"], head)


def _mla_attention(c: Call) -> F32:
    a, heads = c.a, c.a["heads"]
    q, kv, positions = c.x
    row = _latent_row(c)
    latent, k_pe = nx.split(kv, row, 1)
    latent = nx.rms_norm(latent, c.w[0], a["eps"])
    rows = c.append("cache", nx.concat([latent, c.rope(k_pe, positions, 1)], 1), row)
    q_nope, q_pe = nx.split(q, (a["qk_nope_head_dim"], a["qk_rope_head_dim"]), heads)
    form = _mla_absorbed if c.mla_form == "absorbed" else _mla_expanded
    return form(c, q_nope, c.rope(q_pe, positions, heads), rows)


def _sparse_mla_attention(c: Call) -> F32:
    """mla_attention as the plain ops have it, over the rows that the indexer chooses."""
    a, heads = c.a, c.a["heads"]
    q, kv, positions, index_q, index_k, index_w = c.x
    row = _latent_row(c)
    latent, k_pe = nx.split(kv, row, 1)
    latent = nx.rms_norm(latent, c.w[0], a["eps"])
    rows = c.append("cache", nx.concat([latent, c.rope(k_pe, positions, 1)], 1), row)
    dim, index_heads = a["index_head_dim"], a["index_n_heads"]
    index_k = _index_rope(c, nx.layer_norm(index_k, c.w[3], c.w[4], a["index_eps"]), 1)
    keys = c.append("index_cache", index_k, (dim,))
    index_q = c.cache.round_queries(_index_rope(c, index_q, index_heads), index_heads, 1, (dim,))
    chosen = nx.select_keys(index_q, index_w, keys, c.batch, a["index_topk"], 1, a["index_scale"])
    q_nope, q_pe = nx.split(q, (a["qk_nope_head_dim"], a["qk_rope_head_dim"]), heads)
    form = _mla_absorbed if c.mla_form == "absorbed" else _mla_expanded
    return form(c, q_nope, c.rope(q_pe, positions, heads), rows, chosen)


def _index_rope(c: Call, x: F32, heads: int) -> F32:
    """x rotated in the first columns of every head."""
    a = c.a
    sizes = (2 * len(a["inv_freq"]), a["index_head_dim"] - 2 * len(a["inv_freq"]))
    first, rest = nx.split(x, sizes, heads)
    angles = (a["inv_freq"], a["rope_scale"], bool(a["index_interleaved"]))
    return nx.concat([nx.rope(first, c.x[2], heads, *angles), rest], heads)


def _latent_row(c: Call) -> tuple[int, int]:
    """Columns of the two parts of a cache row."""
    return c.a["kv_lora_rank"], c.a["qk_rope_head_dim"]


def _head_matrices(weight: F32, heads: int, rows: int) -> F32:
    """A PadHeads matrix as [heads, rows, cols], the padding cut off."""
    return weight.reshape(heads, -1, weight.shape[1])[:, :rows]


def _mla_expanded(c: Call, q_nope: F32, q_pe: F32, rows: F32, chosen: I32 | None = None) -> F32:
    """Keys and values rebuilt from the latents. chosen: rows of each token; None: all it sees."""
    a, heads = c.a, c.a["heads"]
    latent, k_pe = nx.split(rows, _latent_row(c), 1)
    w_uk = _head_matrices(c.w[1], heads, a["qk_nope_head_dim"])
    w_uv = _head_matrices(c.w[2], heads, a["v_head_dim"])
    k_nope = nx.linear(latent, w_uk.reshape(-1, latent.shape[1]))
    v = nx.linear(latent, w_uv.reshape(-1, latent.shape[1]))
    k = nx.concat([k_nope, np.tile(k_pe, heads)], heads)
    q = nx.concat([q_nope, q_pe], heads)
    if chosen is not None:
        return nx.sparse_attention(q, k, v, chosen, c.batch, heads, heads, a["scale"])
    return nx.attention(q, k, v, c.batch, heads, heads, a["scale"])


def _mla_absorbed(c: Call, q_nope: F32, q_pe: F32, rows: F32, chosen: I32 | None = None) -> F32:
    """Queries moved into the latent space: one key, the cache row; one value, its latent."""
    a, heads, rank = c.a, c.a["heads"], c.a["kv_lora_rank"]
    w_uk = _head_matrices(c.w[1], heads, a["qk_nope_head_dim"])
    w_uv = _head_matrices(c.w[2], heads, a["v_head_dim"])
    q_latent = np.einsum("thn,hnr->thr", nx.split_heads(q_nope, heads), w_uk)
    q = nx.concat([nx.merge_heads(q_latent), q_pe], heads)
    latent = np.ascontiguousarray(rows[:, :rank])
    out = _attend_rows(c, q, rows, latent, 1, _latent_row(c), chosen)
    return nx.merge_heads(np.einsum("thr,hvr->thv", nx.split_heads(out, heads), w_uv))


def _route(c: Call) -> tuple[I32, F32]:
    a = c.a
    scores = _scores(c)
    choice = scores + c.w[0] if c.w else scores
    if a["n_group"] > 1:
        choice = nx.group_limit(choice, a["n_group"], a["topk_group"], a["group_score"])
    indices = nx.top_k(choice, a["top_k"])
    return indices, _weigh(c, scores, indices)


def _scores(c: Call) -> F32:
    kinds = {"softmax": nx.softmax, "sigmoid": nx.sigmoid, "sqrtsoftplus": nx.sqrt_softplus}
    return kinds[c.a["scoring"]](c.x[0])


def _weigh(c: Call, scores: F32, indices: I32) -> F32:
    weights = nx.gather(scores, indices)
    if c.a["normalize"]:
        weights = nx.normalize(weights, c.a["eps"])
    return weights * np.float32(c.a["factor"])


def _hash_route(c: Call) -> tuple[I32, F32]:
    indices = nx.lookup(c.x[1], c.w[0], c.a["top_k"], c.a["experts"])
    return indices, _weigh(c, _scores(c), indices)


def _moe(c: Call) -> F32:
    x, indices, weights, *shared = c.x
    n, k = indices.shape
    y = np.zeros((n, k, x.shape[1]), np.float32)
    for expert in np.unique(indices):
        token, choice = np.nonzero(indices == expert)
        gate_up, down = c.w[2 * expert], c.w[2 * expert + 1]
        hidden = _swiglu(x[token], gate_up, c.a["intermediate_size"], c.a["limit"])
        y[token, choice] = nx.linear(hidden, down)
    out = nx.combine(nx.merge_heads(y), weights)
    return out + shared[0] if shared else out


def _window_attention(c: Call) -> F32:
    a = c.a
    shape = compressed.WindowShape(a["heads"], a["scale"], a["window"], a["ratio"])
    return compressed.window_attention(c.x, c.w[0], c.batch, shape)


def _cached_entries(c: Call) -> F32:
    return CachedEntries(c.a, c.cache, c.batch).attend(c.x, c.w)


def _hyper_in(c: Call) -> tuple[F32, F32, F32]:
    a, n, x = c.a, c.a["streams"], c.x[0]
    found = nx.linear(nx.rms_norm(x, None, a["norm_eps"]), c.w[0])
    found = found * np.repeat(c.w[1], (n, n, n * n)) + c.w[2]
    pre, post, comb = nx.split(found, (n, n, n * n), 1)
    block = hyper.mix(nx.sigmoid(pre) + np.float32(a["eps"]), x, 1, False)
    comb = hyper.sinkhorn(comb, n, a["iterations"], a["eps"])
    return nx.rms_norm(block, c.w[3], a["norm_eps"]), 2 * nx.sigmoid(post), comb


def _hyper_out(c: Call) -> F32:
    out, post, comb, x = c.x
    return hyper.mix(post, out, c.a["streams"], False) + hyper.mix(comb, x, c.a["streams"], True)


OPS: dict[str, Callable[[Call], Array | tuple[Array, ...]]] = {
    "embedding": lambda c: c.w[0][c.x[0]],
    "linear": _linear,
    "rms_norm": lambda c: nx.rms_norm(c.x[0], c.w[0] if c.w else None, c.a["eps"], c.a["heads"]),
    "reshape": lambda c: c.x[0],
    "split": lambda c: nx.split(c.x[0], c.a["sizes"], c.a["heads"]),
    "concat": lambda c: nx.concat(c.x, c.a["heads"]),
    "broadcast": lambda c: np.tile(c.x[0], c.a["heads"]),
    "rope": lambda c: c.rope(c.x[0], c.x[1], c.a["heads"]),
    "cache": lambda c: c.append("cache", c.x[0], (c.x[0].shape[1],)),
    "attention": _attention,
    "silu": lambda c: nx.silu(c.x[0]),
    "sigmoid": lambda c: nx.sigmoid(c.x[0]),
    "softmax": lambda c: nx.softmax(c.x[0]),
    "add": lambda c: c.x[0] + c.x[1],
    "mul": lambda c: c.x[0] * c.x[1],
    "bias_add": lambda c: c.x[0] + c.w[0],
    "scale": lambda c: c.x[0] * np.float32(c.a["factor"]),
    "group_limit": lambda c: nx.group_limit(
        c.x[0], c.a["n_group"], c.a["topk_group"], c.a["group_score"]
    ),
    "top_k": lambda c: nx.top_k(c.x[0], c.a["top_k"]),
    "gather": lambda c: nx.gather(c.x[0], c.x[1]),
    "normalize": lambda c: nx.normalize(c.x[0], c.a["eps"]),
    "expert_linear": lambda c: nx.expert_linear(c.x[0], c.x[1], c.w, bool(c.a["per_choice"])),
    "combine": lambda c: nx.combine(c.x[0], c.x[1]),
    "select_rows": lambda c: c.x[0][c.batch.logit_rows],
    "add_rms_norm": _add_rms_norm,
    "swiglu": lambda c: _swiglu(c.x[0], c.w[0], c.a["intermediate_size"], c.a["limit"]),
    "gqa_attention": _gqa_attention,
    "mla_attention": _mla_attention,
    "route": _route,
    "moe": _moe,
    "layer_norm": lambda c: nx.layer_norm(c.x[0], c.w[0], c.w[1], c.a["eps"]),
    "select_keys": _select_keys,
    "sparse_mla_attention": _sparse_mla_attention,
    "sparse_attention": _sparse_attention,
    "sqrt_softplus": lambda c: nx.sqrt_softplus(c.x[0]),
    "clamp": lambda c: nx.clamp(c.x[0], c.a["limit"], bool(c.a["two_sided"])),
    "add_constant": lambda c: c.x[0] + np.float32(c.a["constant"]),
    "gain": lambda c: c.x[0] * c.w[0],
    "lookup": lambda c: nx.lookup(c.x[0], c.w[0], c.a["top_k"], c.a["experts"]),
    "mix": lambda c: hyper.mix(c.x[0], c.x[1], c.a["rows"], bool(c.a["transposed"])),
    "sinkhorn": lambda c: hyper.sinkhorn(c.x[0], c.a["size"], c.a["iterations"], c.a["eps"]),
    "compress": lambda c: compressed.compress(
        c.x[0], c.x[1], c.w[0], c.batch, c.a["ratio"], bool(c.a["overlapping"])
    ),
    "window_attention": _window_attention,
    "grouped_linear": lambda c: nx.grouped_linear(c.x[0], c.w[0], c.a["groups"]),
    "hash_route": _hash_route,
    "hyper_in": _hyper_in,
    "hyper_out": _hyper_out,
    "sliding_attention": _cached_entries,
    "heavily_compressed_attention": _cached_entries,
    "compressed_sparse_attention": _cached_entries,
}
"""op → its outputs (one array, or a tuple), each [n, width]."""
