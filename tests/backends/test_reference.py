"""The reference backend's maths against torch, its cache, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn import functional as torch_nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from deepmnn.backends.base import Batch
from deepmnn.backends.reference import PagedCache, ReferenceBackend
from deepmnn.backends.reference import numerics as nx
from deepmnn.backends.reference.ops import OPS
from deepmnn.errors import GraphError, RequestError
from deepmnn.graph.caches import CacheEntry
from deepmnn.graph.ir import Node
from deepmnn.graph.signatures import SIGNATURES
from deepmnn.models import build
from dense_rotation import dense_head_rotation
from parity import prompts_for, reference, relative_error, run_schedule
from tiny_models import TinyModel, tiny_checkpoint

RNG = np.random.default_rng(11)


def randn(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def close(got: Any, want: Any) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.asarray(want), rtol=1e-5, atol=1e-6)


def one_batch(new: list[int], lengths: list[int], block_size: int = 4) -> Batch:
    """Sequences with consecutive blocks of their own."""
    starts = np.cumsum([0, *new]).astype(np.int32)
    per = max(-(-length // block_size) for length in lengths)
    tables = np.arange(per * len(new), dtype=np.int32).reshape(len(new), per)
    ends = zip(new, lengths, strict=True)
    positions = np.concatenate([np.arange(end - n, end) for n, end in ends])
    total = int(starts[-1])
    return Batch(
        np.zeros(total, np.int32),
        positions.astype(np.int32),
        starts,
        np.array(lengths, np.int32),
        tables,
        np.arange(total, dtype=np.int32),
    )


def test_every_op_is_there() -> None:
    assert OPS.keys() == SIGNATURES.keys()


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("heads", "d"), [(1, 1), (1, 37), (3, 10)])
def test_rms_norm(n: int, heads: int, d: int) -> None:
    x, w = randn(n, heads * d), randn(d)
    want = torch_nn.rms_norm(torch.tensor(x).reshape(n, heads, d), (d,), torch.tensor(w), 1e-5)
    close(nx.rms_norm(x, w, 1e-5, heads), want.reshape(n, heads * d))


@pytest.mark.parametrize(("n", "rows", "cols"), [(0, 3, 5), (1, 1, 1), (7, 33, 17)])
def test_linear(n: int, rows: int, cols: int) -> None:
    x, w, b = randn(n, cols), randn(rows, cols), randn(rows)
    close(nx.linear(x, w, b), torch_nn.linear(*map(torch.tensor, (x, w, b))))


@pytest.mark.parametrize("heads", [1, 3])
def test_rope_by_halves(heads: int) -> None:
    x, positions = randn(5, heads * 6), np.array([0, 1, 7, 100, 3], np.int32)
    inv_freq = (1.0, 0.3, 0.01)
    angles = torch.tensor(positions)[:, None] * torch.tensor(inv_freq, dtype=torch.float64)
    emb = torch.cat([angles, angles], -1)[None]
    q = torch.tensor(x).reshape(1, 5, heads, 6).transpose(1, 2)
    want, _ = apply_rotary_pos_emb(q, q, emb.cos() * 1.3, emb.sin() * 1.3)
    got = nx.rope(x, positions, heads, inv_freq, 1.3, interleaved=False)
    close(got, want.transpose(1, 2).reshape(5, heads * 6).float())


@pytest.mark.parametrize("heads", [1, 3])
def test_rope_interleaved(heads: int) -> None:
    """As DeepSeek's inference code: pairs are complex numbers turned by e^{i·angle}."""
    x, positions = randn(4, heads * 6), np.array([0, 9, 2, 31], np.int32)
    inv_freq = (1.0, 0.3, 0.01)
    pairs = torch.view_as_complex(torch.tensor(x).reshape(4, heads, 3, 2))
    angles = torch.tensor(positions)[:, None, None] * torch.tensor(inv_freq, dtype=torch.float64)
    turned = pairs * torch.polar(torch.full_like(angles, 0.7), angles)
    want = torch.view_as_real(turned).reshape(4, heads * 6).float()
    close(nx.rope(x, positions, heads, inv_freq, 0.7, interleaved=True), want)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "d", "v"), [(1, 1, 3, 5), (6, 2, 8, 8), (5, 1, 7, 2)]
)
def test_attention(heads: int, kv_heads: int, d: int, v: int) -> None:
    new, lengths = [3, 1, 5], [3, 9, 6]
    q, k, values = randn(9, heads * d), randn(18, kv_heads * d), randn(18, kv_heads * v)
    got = nx.attention(q, k, values, one_batch(new, lengths), heads, kv_heads, 0.37)
    start = end = 0
    for n, length in zip(new, lengths, strict=True):
        tq, tk, tv = (
            torch.tensor(array).reshape(rows, h, -1).transpose(0, 1)
            for array, rows, h in (
                (q[start : start + n], n, heads),
                (k[end : end + length], length, kv_heads),
                (values[end : end + length], length, kv_heads),
            )
        )
        mask = torch.ones(n, length, dtype=torch.bool).tril(length - n)
        want = torch_nn.scaled_dot_product_attention(tq, tk, tv, mask, scale=0.37, enable_gqa=True)
        close(got[start : start + n], want.transpose(0, 1).reshape(n, -1))
        start, end = start + n, end + length


def test_activations_without_overflow() -> None:
    x = np.concatenate([randn(40), [-1e4, -90.0, 0.0, 90.0, 1e4]]).astype(np.float32)[None]
    close(nx.silu(x), torch_nn.silu(torch.tensor(x)))
    close(nx.sigmoid(x), torch.sigmoid(torch.tensor(x)))
    close(nx.softmax(x), torch.softmax(torch.tensor(x), -1))
    masked = np.array([[1.0, -np.inf, 2.0]], np.float32)
    close(nx.softmax(masked), torch.softmax(torch.tensor(masked), -1))


@pytest.mark.parametrize(("score", "n_group", "topk_group"), [("max", 4, 1), ("top2_sum", 3, 2)])
def test_group_limit(score: str, n_group: int, topk_group: int) -> None:
    x = randn(6, 12)
    groups = torch.tensor(x).reshape(6, n_group, -1)
    best = groups.topk(1 if score == "max" else 2, -1).values.sum(-1)
    chosen = torch.zeros_like(best).scatter(1, best.topk(topk_group, -1).indices, 1.0)
    want = groups.masked_fill(chosen[..., None] == 0, -torch.inf).reshape(6, 12)
    close(nx.group_limit(x, n_group, topk_group, score), want)


def test_top_k_and_gather() -> None:
    x = randn(5, 9)
    values, indices = torch.tensor(x).topk(4, -1)
    np.testing.assert_array_equal(nx.top_k(x, 4), indices)
    close(nx.gather(x, nx.top_k(x, 4)), values)
    ties = np.array([[1.0, 2.0, 2.0, 1.0, 2.0]], np.float32)
    assert nx.top_k(ties, 4).tolist() == [[1, 2, 4, 0]]


@pytest.mark.parametrize("per_choice", [False, True])
def test_expert_linear_and_combine(per_choice: bool) -> None:
    weights = [randn(7, 5) for _ in range(4)]
    indices = np.array([[0, 3], [3, 1], [1, 0]], np.int32)  # expert 2 has nothing to do
    x, scores = randn(3, 10 if per_choice else 5), randn(3, 2)
    rows = [[x[i, 5 * j : 5 * j + 5] if per_choice else x[i] for j in range(2)] for i in range(3)]
    want = np.array([[weights[indices[i, j]] @ rows[i][j] for j in range(2)] for i in range(3)])
    got = nx.expert_linear(x, indices, weights, per_choice)
    close(got, want.reshape(3, 14))
    close(nx.combine(got, scores), np.einsum("ijo,ij->io", want, scores))


def test_split_concat_normalize() -> None:
    x = randn(3, 2 * 9)
    a, b = nx.split(x, (4, 5), heads=2)
    close(a, x.reshape(3, 2, 9)[:, :, :4].reshape(3, 8))
    close(nx.concat([a, b], heads=2), x)
    weights = np.abs(randn(4, 3))
    close(nx.normalize(weights, 0.5), weights / (weights.sum(1, keepdims=True) + 0.5))


def test_cache_keeps_pages_apart() -> None:
    cache = PagedCache({"a": CacheEntry(3)}, blocks=6, block_size=4, dtype="f32")
    first, more = randn(7, 3), randn(3, 3)
    batch = one_batch([5, 2], [5, 2])
    np.testing.assert_array_equal(cache.append("a", first, batch, (3,)), first)
    batch = replace(one_batch([1, 2], [6, 4]), block_tables=batch.block_tables)
    got = cache.append("a", more, batch, (3,))
    np.testing.assert_array_equal(got, np.concatenate([first[:5], more[:1], first[5:], more[1:]]))
    cache.copy_block(0, 5)
    np.testing.assert_array_equal(cache.entries["a"][5], first[:4])


def test_bf16_cache_rounds() -> None:
    cache = PagedCache({"a": CacheEntry(3)}, blocks=2, block_size=4, dtype="bf16")
    x = randn(4, 3)
    want = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(cache.append("a", x, one_batch([4], [4]), (3,)), want)


def int8_group(x: Any) -> Any:
    """[n, one group of columns] in int8 and back."""
    scale = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 127
    return np.rint(x / np.where(scale == 0, 1, scale)) * scale


def dense_row(head: tuple[int, ...], heads: int) -> Any:
    """The rotation of a row as one matrix."""
    parts = [dense_head_rotation(d) for _ in range(heads) for d in head]
    ends = np.cumsum([len(part) for part in parts])
    matrix = np.zeros((ends[-1], ends[-1]))
    for end, part in zip(ends, parts, strict=True):
        matrix[end - len(part) : end, end - len(part) : end] = part
    return matrix


@pytest.mark.parametrize(
    ("head", "heads"),
    [((150,), 1), ((50,), 3), ((64,), 3), ((20,), 5), ((80,), 2), ((128, 64), 1), ((35, 6), 1)],
)
def test_int8_cache_rounds_rotated_heads(head: tuple[int, ...], heads: int) -> None:
    width, dense = sum(head) * heads, dense_row(head, heads)
    cache = PagedCache({"a": CacheEntry(width)}, blocks=2, block_size=4, dtype="int8")
    x = randn(4, width)
    x[1] = 0
    got, rotated = cache.append("a", x, one_batch([4], [4]), head), x @ dense.T
    groups = [rotated[:, i : i + 64] for i in range(0, width, 64)]
    want = np.hstack([int8_group(group) for group in groups]) @ dense
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    steps = np.hstack([np.abs(g).max(1, keepdims=True).repeat(g.shape[1], 1) for g in groups])
    bound = np.linalg.norm(steps / 254, axis=1)  # each code is off by half a step at most
    assert (np.linalg.norm(got - x, axis=1) <= bound * 1.001).all()


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (6, 1)])
def test_queries_of_int8_rows_round(heads: int, kv_heads: int) -> None:
    """The second head of keys has 24 columns of a group."""
    cache = PagedCache({}, blocks=8, block_size=4, dtype="int8")
    q, dense = randn(10, heads * 40), dense_head_rotation(40)
    want = np.array(q)
    for head in range(heads):
        x = q[:, 40 * head : 40 * head + 40] @ dense.T
        parts = np.split(x, [24], axis=1) if head >= heads / kv_heads else [x]
        want[:, 40 * head : 40 * head + 40] = np.hstack([int8_group(p) for p in parts]) @ dense
    got = cache.round_queries(q, heads, kv_heads, (40,))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", [40, 64, 80, 128])
def test_an_outlier_of_an_int8_row_leaves_the_others_their_bits(d: int) -> None:
    x = randn(200, d)
    x[:, 5] = 80
    cache = PagedCache({"a": CacheEntry(d)}, blocks=1, block_size=200, dtype="int8")
    batch = replace(one_batch([200], [200]), block_tables=np.zeros((1, 1), np.int32))
    error = np.square(cache.append("a", x, batch, (d,)) - x).mean()
    as_it_is = np.hstack([int8_group(x[:, i : i + 64]) for i in range(0, d, 64)])
    assert error < np.square(as_it_is - x).mean() / 9


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    path: Path = tmp_path_factory.mktemp("tiny")
    return tiny_checkpoint("deepseek_v3", 0, path)


def test_bf16_cache_moves_logits_a_little(tiny: TinyModel) -> None:
    backend = reference(build(tiny.config), tiny)
    prompts = prompts_for([9], backend.vocab_size)
    exact, rounded = (
        run_schedule(backend, prompts, [(1,)] * 9, cache_dtype=dtype)[0]
        for dtype in ("f32", "bf16")
    )
    assert 1e-5 < relative_error(rounded, exact) < 0.05


def test_only_wanted_rows_reach_the_head(tiny: TinyModel) -> None:
    backend = reference(build(tiny.config), tiny)
    batch = replace(one_batch([6, 3], [6, 3]), ids=np.arange(9, dtype=np.int32))
    everything = backend.step(backend.new_cache(8, 4), batch)
    for rows in ([], [5], [8, 0]):
        some = replace(batch, logit_rows=np.array(rows, np.int32))
        got = backend.step(backend.new_cache(8, 4), some)
        assert got.shape == (len(rows), backend.vocab_size)
        np.testing.assert_allclose(got, everything[rows], rtol=1e-4, atol=1e-5)


BAD: dict[str, dict[str, Any]] = {
    "id beyond the vocabulary": {"ids": [0, 97, 0, 0, 0]},
    "negative id": {"ids": [0, -1, 0, 0, 0]},
    "positions": {"positions": [0, 1]},
    "starts do not end at tokens": {"sequence_starts": [0, 3, 4]},
    "starts do not begin at zero": {"sequence_starts": [1, 3, 5]},
    "no sequence": {"sequence_starts": [0]},
    "empty sequence": {"sequence_starts": [0, 5, 5]},
    "context shorter than new": {"context_lengths": [2, 2]},
    "context count": {"context_lengths": [3]},
    "too few blocks": {"context_lengths": [3, 200]},
    "block beyond the cache": {"block_tables": [[0], [8]]},
    "unused block used": {"block_tables": [[0], [-1]]},
    "table count": {"block_tables": [[0]]},
    "logit row": {"logit_rows": [5]},
}


@pytest.mark.parametrize("what", BAD)
def test_bad_batches_are_refused(tiny: TinyModel, what: str) -> None:
    backend = reference(build(tiny.config), tiny)
    good = one_batch([3, 2], [3, 2])
    changes = {name: np.array(value, np.int32) for name, value in BAD[what].items()}
    cache = backend.new_cache(8, 4)
    backend.step(cache, good)
    with pytest.raises(RequestError):
        backend.step(cache, replace(good, **changes))


def test_bad_arguments_are_refused(tiny: TinyModel) -> None:
    graph = build(tiny.config)
    backend = reference(graph, tiny)
    for arguments in ((0, 4), (4, 0), (4, 4, "int7")):
        with pytest.raises(RequestError):
            backend.new_cache(*arguments)  # type: ignore[arg-type]
    for blocks in ((0, 4), (-1, 0)):
        with pytest.raises(RequestError):
            backend.new_cache(4, 4).copy_block(*blocks)
    with pytest.raises(RequestError, match="mla_form"):
        ReferenceBackend(graph, tiny.read, "fast")
    wrong = ReferenceBackend(graph, lambda name: np.zeros((2, 2), np.float32))
    with pytest.raises(GraphError, match="has shape"):
        wrong.step(wrong.new_cache(2, 4), one_batch([1], [1]))
    graph.nodes[0] = Node("conv2d", ("ids",), ("embed_tokens",))
    with pytest.raises(GraphError, match="unknown op"):
        backend.step(backend.new_cache(2, 4), one_batch([1], [1]))


def test_ties_go_to_the_lower_index() -> None:
    scores = np.zeros((2, 200), np.float32)
    scores[1, 150:] = 1
    np.testing.assert_array_equal(nx.top_k(scores, 3), [[0, 1, 2], [150, 151, 152]])
