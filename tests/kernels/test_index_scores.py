"""index_scores and layer_norm against numpy and torch, in odd sizes."""

import numpy as np
import pytest
import torch

from deepmnn._core import kernels


@pytest.mark.parametrize("dim", [1, 6, 16, 17, 64, 100, 128])
@pytest.mark.parametrize("heads", [1, 2, 5, 6, 7, 13, 24, 64])
@pytest.mark.parametrize(("rows", "ratio"), [(1, 1), (15, 1), (16, 1), (33, 1), (70, 4), (9, 3)])
def test_scores(isa, rng, dim, heads, rows, ratio):
    tokens, keys = 3, rows // ratio
    q = rng.standard_normal((tokens, heads * dim)).astype(np.float32)
    weights = rng.standard_normal((tokens, heads)).astype(np.float32)
    k = rng.standard_normal((rows, dim)).astype(np.float32)
    limits = np.full(tokens, keys, np.int32)
    found = kernels.index_scores(q, weights, k, limits, ratio, isa)[:, :keys]
    chosen = k[ratio - 1 :: ratio][:keys].astype(np.float64)
    products = np.einsum("thd,kd->thk", q.reshape(tokens, heads, dim).astype(np.float64), chosen)
    want = np.einsum("thk,th->tk", np.maximum(products, 0), weights)
    bound = np.abs(np.maximum(products, 0)).max() * np.abs(weights).sum()
    assert np.abs(found - want).max() <= 1e-6 * bound


@pytest.mark.parametrize("heads", [1, 5, 13])
def test_what_is_no_number_stays_none(isa, rng, heads):
    """Not zero: it would be chosen before negative scores."""
    q = rng.standard_normal((2, heads * 20)).astype(np.float32)
    weights = rng.standard_normal((2, heads)).astype(np.float32)
    k = rng.standard_normal((33, 20)).astype(np.float32)
    k[[3, 32], 7] = np.nan
    found = kernels.index_scores(q, weights, k, np.full(2, 33, np.int32), 1, isa)[:, :33]
    assert (np.flatnonzero(np.isnan(found[1])) == [3, 32]).all()
    assert np.isnan(found[0, [3, 32]]).all()


def test_a_score_does_not_depend_on_what_is_beside_it(isa, rng):
    q = rng.standard_normal((4, 13 * 20)).astype(np.float32)
    weights = rng.standard_normal((4, 13)).astype(np.float32)
    k = rng.standard_normal((40, 20)).astype(np.float32)
    together = kernels.index_scores(q, weights, k, np.full(4, 40, np.int32), 1, isa)
    for token in range(4):
        for key in range(40):
            one = kernels.index_scores(
                q[token : token + 1],
                weights[token : token + 1],
                k[key : key + 1],
                np.ones(1, np.int32),
                1,
                isa,
            )
            assert one[0, 0] == together[token, key]


@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 31, 64, 100, 128, 333])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_layer_norm(isa, rng, d, mean):
    x = (mean + rng.standard_normal(d)).astype(np.float32)
    w, b = rng.standard_normal((2, d)).astype(np.float32)
    want = torch.nn.functional.layer_norm(
        torch.from_numpy(x).double(), [d], *(torch.from_numpy(v).double() for v in (w, b)), 1e-6
    )
    found = kernels.layer_norm(x, w, b, 1e-6, isa)
    scale = max(1.0, float(np.abs(want.numpy()).max()))
    assert np.abs(found - want.numpy()).max() <= 2e-5 * scale
