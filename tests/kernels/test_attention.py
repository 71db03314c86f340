"""attention against torch: one run, many runs, causal limits, and the shapes of GQA and MLA."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from deepmnn._core import kernels


@pytest.fixture(params=["rows", "strips"])
def form(request):
    """Both forms hold every property, each against itself: they round differently."""
    return request.param


def fresh(n, v_dim):
    """The state before the first run; acc holds garbage, which must not be read."""
    return (
        np.full((n, v_dim), np.nan, np.float32),
        np.tile(np.array([-np.inf, 0], np.float32), (n, 1)),
    )


def attend(isa, form, q, k, v, scale, limits, run_lengths):
    """Runs of cache rows one after the other, as the engine calls it; the final division here."""
    acc, max_sum = fresh(len(q), v.shape[1])
    start = 0
    for length in run_lengths:
        stop = start + length
        local = (limits - start).astype(np.int32)  # below 0 or above the run: clamped
        acc, max_sum = kernels.attention(
            q, k[start:stop], v[start:stop], scale, local, acc, max_sum, isa, form
        )
        start = stop
    return acc / max_sum[:, 1:]


def expected(q, k, v, scale, limits):
    mask = torch.arange(len(k))[None] < torch.from_numpy(limits)[:, None]
    as64 = [torch.from_numpy(np.asarray(a, np.float64)) for a in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*as64, attn_mask=mask, scale=scale)
    return out.numpy()


def int8_rows(x):
    """Rows of an int8 cache and the numbers they stand for (docs/layouts.md)."""
    n, width = x.shape
    groups, codes = -(-width // 64), np.zeros((n, -(-width // 4) * 4), np.int8)
    scales, value = np.zeros((n, groups), np.float32), np.zeros_like(x)
    for g in range(groups):
        part = slice(64 * g, min(64 * g + 64, width))
        scales[:, g] = np.abs(x[:, part]).max(axis=1) / np.float32(127)
        codes[:, part] = np.rint(x[:, part] / scales[:, g, None])
        value[:, part] = codes[:, part] * scales[:, g, None]
    return np.concatenate([codes.view(np.uint8), scales.view(np.uint8)], axis=1), value


def split(rng, n):
    """Random run lengths that sum to n."""
    cuts = np.unique(rng.integers(1, n, 3)) if n > 1 else np.array([], int)
    return np.diff(np.concatenate([[0], cuts, [n]])).tolist()


@pytest.mark.parametrize(
    ("qk_dim", "v_dim"), [(1, 1), (16, 16), (24, 40), (33, 17), (64, 64), (100, 72), (192, 128)]
)
@pytest.mark.parametrize("bf16", [False, True])
def test_matches_torch(isa, rng, form, qk_dim, v_dim, bf16):
    for n_queries, n_keys in [(1, 1), (1, 70), (2, 15), (3, 64), (4, 65), (7, 130), (9, 17)]:
        q = rng.standard_normal((n_queries, qk_dim)).astype(np.float32)
        k = rng.standard_normal((n_keys, qk_dim)).astype(np.float32)
        v = rng.standard_normal((n_keys, v_dim)).astype(np.float32)
        limits = rng.integers(1, n_keys + 1, n_queries).astype(np.int32)
        keys, values = k, v
        if bf16:
            k, v = k.astype(ml_dtypes.bfloat16), v.astype(ml_dtypes.bfloat16)
            keys, values = k.view(np.uint16), v.view(np.uint16)
        scale = 1 / np.sqrt(qk_dim)
        for lengths in ([n_keys], split(rng, n_keys)):
            y = attend(isa, form, q, keys, values, scale, limits, lengths)
            np.testing.assert_allclose(y, expected(q, k, v, scale, limits), rtol=0, atol=5e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_values_inside_the_key_rows(isa, rng, form, bf16):
    """MLA absorbed: one cache row is [latent, rope], the latent is the value as well."""
    rank, rope = 40, 8
    rows = rng.standard_normal((37, rank + rope)).astype(np.float32)
    q = rng.standard_normal((6, rank + rope)).astype(np.float32)
    limits = np.full(6, 37, np.int32)
    reference = rows
    if bf16:
        reference = rows.astype(ml_dtypes.bfloat16)
        rows = reference.view(np.uint16)
    y = attend(isa, form, q, rows, rows[:, :rank], 0.2, limits, [20, 17])
    np.testing.assert_allclose(
        y, expected(q, reference, reference[:, :rank], 0.2, limits), rtol=0, atol=5e-6
    )


def int8_queries(q, column):
    """What the codes of queries stand for: one scale per group of the cache's columns."""
    value = np.zeros_like(q)
    for start in range(-(column % 64), q.shape[1], 64):
        part = slice(max(start, 0), start + 64)
        step = np.abs(q[:, part]).max(axis=1, keepdims=True) / np.float32(127)
        value[:, part] = np.rint(q[:, part] * (np.float32(1) / step)) * step
    return value


def int8_attend(isa, q, rows, scale, limits, runs, columns):
    """Runs of int8 rows; columns: width, k_column, v_column, v_dim."""
    width, k_column, v_column, v_dim = columns
    acc, max_sum = fresh(len(q), v_dim)
    start = 0
    for length in runs:
        part, local = rows[start : start + length], (limits - start).astype(np.int32)
        acc, max_sum = kernels.attention(
            *(q, part, part, scale, local, acc, max_sum, isa, "strips", width, k_column, v_column)
        )
        start += length
    return acc / max_sum[:, 1:]


INT8_SHAPES = pytest.mark.parametrize(
    ("width", "k_column", "qk_dim", "v_column", "v_dim"),
    [
        (1, 0, 1, 0, 1),
        (40, 8, 20, 3, 33),
        (576, 0, 576, 0, 512),
        (256, 128, 128, 128, 128),
        (200, 50, 70, 130, 69),
        (86, 0, 86, 0, 70),
        (160, 80, 80, 80, 80),
    ],
)


@INT8_SHAPES
def test_int8_cache(isa, rng, width, k_column, qk_dim, v_column, v_dim):
    """One head of a wider row, against what the codes of rows and queries stand for."""
    shapes = [(1, 70), (6, 64), (7, 130), (16, 33), (35, 65), (17, 129), (4, 1), (8, 128), (6, 257)]
    for n_queries, n_keys in shapes:
        rows, value = int8_rows(rng.standard_normal((n_keys, width)).astype(np.float32))
        q = rng.standard_normal((n_queries, qk_dim)).astype(np.float32)
        limits = rng.integers(1, n_keys + 1, n_queries).astype(np.int32)
        scale = 1 / np.sqrt(qk_dim)
        k, v = value[:, k_column : k_column + qk_dim], value[:, v_column : v_column + v_dim]
        exact = expected(int8_queries(q, k_column), k, v, scale, limits)
        for runs in ([n_keys], split(rng, n_keys)):
            y = int8_attend(isa, q, rows, scale, limits, runs, (width, k_column, v_column, v_dim))
            # A weight is off by 1 / 65534 of the largest of 128.
            np.testing.assert_allclose(y, exact, rtol=0, atol=2e-4)


@INT8_SHAPES
def test_int8_cache_keeps_its_bound(isa, rng, width, k_column, qk_dim, v_column, v_dim):
    """The bound of kernels/attention_int8.h against float arithmetic on the same rows."""
    n_queries, n_keys = 20, 150
    x = rng.standard_normal((n_keys, width)).astype(np.float32) * rng.lognormal(0, 1, (n_keys, 1))
    rows, value = int8_rows(x.astype(np.float32))
    q = rng.standard_normal((n_queries, qk_dim)).astype(np.float32)
    limits = rng.integers(1, n_keys + 1, n_queries).astype(np.int32)
    scale = 1 / np.sqrt(qk_dim)
    k, v = value[:, k_column : k_column + qk_dim], value[:, v_column : v_column + v_dim]
    y = int8_attend(isa, q, rows, scale, limits, [n_keys], (width, k_column, v_column, v_dim))
    score = np.zeros(n_queries)  # how far a score can be off
    for start in range(-(k_column % 64), qk_dim, 64):
        part = slice(max(start, 0), start + 64)
        element = np.abs(q[:, part]).max(axis=1) / 254
        score += scale * element * np.abs(k[:, part]).sum(axis=1).max()
    # Weights off by e^(2 score) move the average by as much of the largest value; integers by 1e-3.
    bound = (np.expm1(2 * score) + 1e-3) * np.abs(v).max() + 1e-5
    assert (np.abs(y - expected(q, k, v, scale, limits)).max(axis=1) <= bound).all()


def test_int8_keys_far_below_the_largest_weight_still_count(isa, rng):
    """Tiles whose weights are tiny beside another tile's keep their precision: they add up."""
    width, n_keys = 64, 64 * 40
    x = 1 + 0.1 * rng.standard_normal((n_keys, width)).astype(np.float32)
    x[:, 0] = 0
    x[0], x[0, 0] = 0, 20  # one key far ahead; the others are e^-12 of it, and together 1.5 %
    rows, value = int8_rows(x)
    q = np.zeros((3, width), np.float32)
    q[:, 0] = 12 / 20
    limits = np.full(3, n_keys, np.int32)
    y = int8_attend(isa, q, rows, 1.0, limits, [n_keys], (width, 0, 0, width))
    exact = expected(q, value, value, 1.0, limits)
    assert exact[:, 1:].min() > 0.014
    # Only the 127 keys of the large one's own tile vanish beside it: 127 e^-12.
    np.testing.assert_allclose(y[:, 1:], exact[:, 1:], rtol=0, atol=1e-3)


def test_a_fault_in_an_int8_row_is_not_lost(isa, rng):
    rows, _ = int8_rows(rng.standard_normal((70, 64)).astype(np.float32))
    rows = rows.copy()
    rows[66, 64:] = np.array([np.nan], np.float32).view(np.uint8)
    q = rng.standard_normal((2, 64)).astype(np.float32)
    limits = np.array([70, 64], np.int32)
    y = int8_attend(isa, q, rows, 1.0, limits, [70], (64, 0, 0, 64))
    assert np.isnan(y[0]).all()
    bad = np.where(np.arange(64) == 3, np.nan, q).astype(np.float32)
    y = int8_attend(isa, bad, rows[:64], 1.0, np.array([64, 64], np.int32), [64], (64, 0, 0, 64))
    assert np.isnan(y).all()


def test_rows_of_a_wider_cache(isa, rng, form):
    """One KV head of a row that holds several: strides larger than the row."""
    q = rng.standard_normal((5, 20)).astype(np.float32)
    cache = rng.standard_normal((50, 3, 20)).astype(np.float32)
    k, v = cache[:, 1], cache[:, 2]
    limits = np.arange(10, 60, 10, dtype=np.int32)
    y = attend(isa, form, q, k, v, 0.3, limits, [50])
    np.testing.assert_allclose(y, expected(q, k, v, 0.3, limits), rtol=0, atol=5e-6)


def test_rising_scores_rescale_what_came_before(isa, rng, form):
    """Scores that grow by hundreds from run to run: old weights vanish without overflow."""
    q = np.ones((2, 16), np.float32)
    k = np.repeat(np.arange(90, dtype=np.float32)[:, None] * 10, 16, axis=1)
    v = rng.standard_normal((90, 16)).astype(np.float32)
    limits = np.array([90, 45], np.int32)
    y = attend(isa, form, q, k, v, 1.0, limits, [30, 30, 30])
    np.testing.assert_allclose(y, v[[89, 44]], rtol=1e-6)
    y = attend(isa, form, q, np.ascontiguousarray(k[::-1]), v, 1.0, limits, [30, 30, 30])
    np.testing.assert_allclose(y, v[[0, 0]], rtol=1e-6)


def test_a_query_that_sees_nothing_keeps_its_state(isa, rng, form):
    q = rng.standard_normal((3, 16)).astype(np.float32)
    rows = rng.standard_normal((8, 16)).astype(np.float32)
    acc, max_sum = fresh(3, 16)
    limits = np.array([4, 0, -5], np.int32)
    acc, max_sum = kernels.attention(q, rows, rows, 1.0, limits, acc, max_sum, isa, form)
    assert max_sum[0, 1] > 0
    assert np.isfinite(acc[0]).all()
    assert (max_sum[1:] == [-np.inf, 0]).all()
    before = acc[0].copy(), max_sum[0].copy()
    zeros = np.zeros(3, np.int32)
    acc, max_sum = kernels.attention(q, rows, rows, 1.0, zeros, acc, max_sum, isa, form)
    assert np.array_equal(acc[0], before[0])
    assert np.array_equal(max_sum[0], before[1])


def test_no_queries(isa, rng, form):
    rows = rng.standard_normal((70, 64)).astype(np.float32)
    q, limits = rows[:0], np.zeros(0, np.int32)
    assert attend(isa, form, q, rows, rows, 1.0, limits, [70]).shape == (0, 64)
    codes, _ = int8_rows(rows)
    assert int8_attend(isa, q, codes, 1.0, limits, [70], (64, 0, 0, 64)).shape == (0, 64)


def test_equal_scores_average_the_values(isa, rng, form):
    q, k = np.zeros((1, 32), np.float32), np.zeros((77, 32), np.float32)
    v = rng.standard_normal((77, 32)).astype(np.float32)
    y = attend(isa, form, q, k, v, 1.0, np.array([77], np.int32), [77])
    np.testing.assert_allclose(y[0], v.mean(axis=0), atol=1e-6)


def test_a_query_does_not_depend_on_its_neighbours(isa, rng, form):
    q = rng.standard_normal((9, 50)).astype(np.float32)
    k, v = (rng.standard_normal((100, 50)).astype(np.float32) for _ in range(2))
    limits = rng.integers(1, 101, 9).astype(np.int32)
    together = attend(isa, form, q, k, v, 0.2, limits, [64, 36])
    for i in range(9):
        one = slice(i, i + 1)
        assert np.array_equal(
            attend(isa, form, q[one], k, v, 0.2, limits[one], [64, 36]), together[one]
        )
