"""The maths of every plain op, on dense arrays [n, width] of float32.

Sums whose rounding matters (norms, softmax, rotations, weighted sums) run in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deepmnn.backends.base import F32, I32, Batch
from deepmnn.backends.reference.cache import token_ranges
from deepmnn.errors import CheckpointError


def split_heads(x: F32, heads: int) -> F32:
    """[n, heads · d] → [n, heads, d]."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads)


def merge_heads(x: F32) -> F32:
    """[n, heads, d] → [n, heads · d], as float32."""
    return np.ascontiguousarray(x, dtype=np.float32).reshape(x.shape[0], x.shape[1] * x.shape[2])


def linear(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """W x + b for every row."""
    y: F32 = x @ weight.T
    return y if bias is None else y + bias


def rms_norm(x: F32, weight: F32 | None, eps: float, heads: int = 1) -> F32:
    """x / √(mean x² + eps) · w over each head (arXiv:1910.07467); without w it is 1."""
    parts = split_heads(x, heads).astype(np.float64)
    mean = (parts * parts).mean(axis=-1, keepdims=True)
    factor = 1.0 if weight is None else weight
    return merge_heads((parts / np.sqrt(mean + eps) * factor).astype(np.float32))


def layer_norm(x: F32, weight: F32, bias: F32, eps: float) -> F32:
    """(x − mean) / √(variance + eps) · w + b over the row (arXiv:1607.06450)."""
    wide = x.astype(np.float64)
    apart = wide - wide.mean(axis=1, keepdims=True)
    variance = (apart * apart).mean(axis=1, keepdims=True)
    return np.asarray(apart / np.sqrt(variance + eps) * weight + bias, np.float32)


def split(x: F32, sizes: Sequence[int], heads: int) -> tuple[F32, ...]:
    """Every head cut into pieces of these sizes."""
    parts = np.split(split_heads(x, heads), np.cumsum(sizes)[:-1], axis=2)
    return tuple(merge_heads(part) for part in parts)


def concat(parts: Sequence[F32], heads: int) -> F32:
    """Every head's pieces side by side."""
    return merge_heads(np.concatenate([split_heads(part, heads) for part in parts], axis=2))


def rope(
    x: F32,
    positions: I32,
    heads: int,
    inv_freq: Sequence[float],
    rope_scale: float,
    interleaved: bool,
) -> F32:
    """(a, b) → (a cos − b sin, b cos + a sin) · rope_scale for every pair of every head."""
    angles = positions.reshape(-1, 1, 1) * np.asarray(inv_freq, np.float64)  # [n, 1, d / 2]
    cos, sin = np.cos(angles) * rope_scale, np.sin(angles) * rope_scale
    parts = split_heads(x, heads)
    half = parts.shape[2] // 2
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    a, b = parts[..., first], parts[..., second]
    out = np.empty_like(parts)
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return merge_heads(out)


def attention(q: F32, k: F32, v: F32, batch: Batch, heads: int, kv_heads: int, scale: float) -> F32:
    """Causal attention within each sequence: a token sees its context up to and with itself."""
    q, k, v = split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
    out = np.empty((q.shape[0], heads, v.shape[2]), np.float32)
    start = 0
    for tokens, length in zip(token_ranges(batch), batch.context_lengths, strict=True):
        context = slice(start, start + int(length))
        start = context.stop
        new = tokens.stop - tokens.start
        keys = np.repeat(k[context], heads // kv_heads, axis=1)  # [context, heads, d]
        values = np.repeat(v[context], heads // kv_heads, axis=1)
        scores = np.einsum("thd,chd->htc", q[tokens], keys, optimize=True) * scale
        last = np.arange(int(length) - new, int(length))  # the newest row each token sees
        hidden = np.arange(int(length))[None, :] > last[:, None]
        weights = softmax(np.where(hidden, -np.inf, scores))
        out[tokens] = np.einsum("htc,chd->thd", weights, values, optimize=True)
    return merge_heads(out)


def key_scores(q: F32, weights: F32, k: F32, scale: float) -> F32:
    """Σ_h w_h · ReLU(q_h · k) · scale: q [n, heads · d], weights [n, heads], k [m, d] → [n, m]."""
    heads = split_heads(q, weights.shape[1])
    products = np.maximum(np.einsum("thd,cd->thc", heads, k, optimize=True), 0)
    return np.asarray(np.einsum("thc,th->tc", products, weights) * scale, np.float32)


def select_keys(
    q: F32, weights: F32, k: F32, batch: Batch, top_k: int, ratio: int, scale: float
) -> I32:
    """Rows of each token's own sequence with the largest scores, ascending, -1 where there are no
    more. Rows count whose number + 1 is a multiple of ratio; a tie goes to the lower one.
    """
    chosen = np.full((q.shape[0], top_k), -1, np.int32)
    start = 0
    for tokens, length in zip(token_ranges(batch), batch.context_lengths, strict=True):
        rows = np.arange(ratio - 1, int(length), ratio)
        keys = k[start : start + int(length)][rows]
        start += int(length)
        scores = key_scores(q[tokens], weights[tokens], keys, scale)
        first = int(length) - (tokens.stop - tokens.start)
        for i, token in enumerate(range(tokens.start, tokens.stop)):
            seen = rows[: (first + i + 1) // ratio]
            best = np.sort(seen[np.argsort(-scores[i, : len(seen)], kind="stable")[:top_k]])
            chosen[token, : len(best)] = best
    return chosen


def sparse_attention(
    q: F32, k: F32, v: F32, rows: I32, batch: Batch, heads: int, kv_heads: int, scale: float
) -> F32:
    """Attention of each token over the rows that were chosen for it; -1 is none. Of none: zeros."""
    q, k, v = split_heads(q, heads), split_heads(k, kv_heads), split_heads(v, kv_heads)
    out = np.zeros((q.shape[0], heads, v.shape[2]), np.float32)
    start = 0
    for tokens, length in zip(token_ranges(batch), batch.context_lengths, strict=True):
        for token in range(tokens.start, tokens.stop):
            chosen = rows[token][rows[token] >= 0] + start
            if not len(chosen):
                continue
            keys, values = (np.repeat(x[chosen], heads // kv_heads, axis=1) for x in (k, v))
            weights = softmax(np.einsum("hd,chd->hc", q[token], keys, optimize=True) * scale)
            out[token] = np.einsum("hc,chd->hd", weights, values, optimize=True)
        start += int(length)
    return merge_heads(out)


def sigmoid(x: F32) -> F32:
    """1 / (1 + e^−x), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x.astype(np.float64))), np.float32)


def silu(x: F32) -> F32:
    """x · sigmoid(x)."""
    return x * sigmoid(x)


def softmax(x: F32) -> F32:
    """Over the last axis; −inf weighs nothing."""
    exps = np.exp((x - x.max(axis=-1, keepdims=True)).astype(np.float64))
    return np.asarray(exps / exps.sum(axis=-1, keepdims=True), np.float32)


def group_limit(scores: F32, n_group: int, topk_group: int, group_score: str) -> F32:
    """−inf outside the topk_group groups whose best score, or sum of two best, is highest."""
    groups = split_heads(scores, n_group)
    best = np.sort(groups, axis=2)[:, :, -1 if group_score == "max" else -2 :]
    chosen = top_k(best.sum(axis=2), topk_group)
    mask = np.full((scores.shape[0], n_group, 1), -np.inf, np.float32)
    np.put_along_axis(mask[:, :, 0], chosen, 0.0, axis=1)
    return merge_heads(groups + mask)


def top_k(scores: F32, k: int) -> I32:
    """The k best, best first; a tie goes to the lower index."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)


def gather(x: F32, indices: I32) -> F32:
    """x[i, indices[i, j]]."""
    return np.take_along_axis(x, indices.astype(np.int64), axis=1)


def normalize(x: F32, eps: float) -> F32:
    """Rows that sum to one."""
    wide = x.astype(np.float64)
    return np.asarray(wide / (wide.sum(axis=1, keepdims=True) + eps), np.float32)


def expert_linear(x: F32, indices: I32, weights: Sequence[F32], per_choice: bool) -> F32:
    """W[indices[i, j]] x[i] (or x[i, j]) → [n, k · out]."""
    n, k = indices.shape
    rows = split_heads(x, k) if per_choice else np.repeat(x[:, None], k, axis=1)  # [n, k, in]
    out = np.zeros((n, k, weights[0].shape[0]), np.float32)
    for expert in np.unique(indices):
        mine = indices == expert
        out[mine] = rows[mine] @ weights[expert].T
    return merge_heads(out)


def combine(y: F32, weights: F32) -> F32:
    """Σⱼ weights[i, j] · y[i, j]."""
    parts = split_heads(y, weights.shape[1]).astype(np.float64)
    return np.asarray((parts * weights[:, :, None]).sum(axis=1), np.float32)


def sqrt_softplus(x: F32) -> F32:
    """√(ln(1 + eˣ)), without overflow."""
    return np.asarray(np.sqrt(np.logaddexp(0.0, x.astype(np.float64))), np.float32)


def clamp(x: F32, limit: float, two_sided: bool) -> F32:
    """min(x, limit), and not below −limit where it has two sides."""
    return np.clip(x, np.float32(-limit) if two_sided else None, np.float32(limit))


def lookup(ids: I32, table: F32, k: int, experts: int) -> I32:
    """The table's k whole numbers of every id, each below `experts`."""
    rows = table.reshape(-1, k)[ids.reshape(-1)]
    if not ((rows >= 0) & (rows < experts) & (rows == np.floor(rows))).all():
        raise CheckpointError(
            "a table of experts has something else than their numbers",
            f"whole numbers below {experts}",
        )
    return rows.astype(np.int32)


def grouped_linear(x: F32, weight: F32, groups: int) -> F32:
    """Each group's columns times its rows of the matrix."""
    matrices = weight.reshape(groups, -1, weight.shape[1])
    return merge_heads(np.einsum("ngi,goi->ngo", split_heads(x, groups), matrices, optimize=True))
