"""PyTorch's kl_div and cross_entropy, in float64, are the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from deepmnn.errors import RequestError
from deepmnn.quant.divergence import Divergence, Rows, divergence, standard_error

SHAPES = [(1, 2), (3, 7), (40, 5000), (2, 129_280)]


def logits(shape: tuple[int, int], seed: int, scale: float = 5.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=shape) * scale
    return drawn.astype(np.float32)


def oracle(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    wanted, found = (torch.tensor(x).double().log_softmax(-1) for x in (reference, other))
    return F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_divergence_is_torchs(shape: tuple[int, int], scale: float) -> None:
    reference, other = logits(shape, 1, scale), logits(shape, 2, scale)
    found = divergence(reference, other)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, oracle(reference, other), rtol=1e-9, atol=1e-12)
    near = reference + logits(shape, 3, 1e-4)
    np.testing.assert_allclose(divergence(reference, near), oracle(reference, near), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_surprisal_is_torchs_cross_entropy(shape: tuple[int, int]) -> None:
    given = logits(shape, 4)
    tokens = np.random.default_rng(5).integers(0, shape[1], shape[0])
    wanted = F.cross_entropy(torch.tensor(given).double(), torch.tensor(tokens), reduction="none")
    np.testing.assert_allclose(Rows(given).surprisal(tokens.tolist()), wanted.numpy(), rtol=1e-9)
    np.testing.assert_allclose(Rows(given).surprisal(tokens[:-1].tolist()), wanted.numpy()[:-1])


def test_a_constant_changes_nothing_and_equal_rows_are_0_apart() -> None:
    reference, other = logits((9, 300), 6), logits((9, 300), 7)
    log_probabilities = torch.tensor(reference).log_softmax(-1).numpy()
    shifted = other + np.float32(1000)
    np.testing.assert_allclose(
        divergence(log_probabilities, shifted), divergence(reference, other), atol=2e-4
    )
    assert (divergence(reference, reference) == 0).all()
    assert (divergence(reference, reference + np.float32(64)) >= 0).all()


def test_extreme_logits_neither_overflow_nor_vanish() -> None:
    sure = np.array([[3e38, 0, -3e38], [1e4, -1e4, 0]], np.float32)
    other = np.array([[3e38, 0, -3e38], [-1e4, 1e4, 0]], np.float32)
    assert divergence(sure, other).tolist() == [0.0, 2e4]
    assert Rows(other).surprisal([0, 0]).tolist() == [0.0, 2e4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("whose", "index"), [("reference", 0), ("model", 1)])
def test_what_is_no_number_is_refused(bad: float, whose: str, index: int) -> None:
    both = [logits((600, 40), 8), logits((600, 40), 9)]
    both[index][577, 3] = bad
    with pytest.raises(RequestError, match=f"row 577 of the logits of the {whose} has NaN"):
        divergence(*both)
    if bad != -np.inf:  # which only says that one token is impossible
        with pytest.raises(RequestError, match="row 577"):
            Rows(both[index]).surprisal([0] * 600)


def test_shapes_that_differ_are_refused() -> None:
    for other in ((4, 30), (5, 31)):
        with pytest.raises(RequestError, match="the same vocabulary"):
            divergence(logits((5, 30), 0), logits(other, 0))


def test_figures_of_many_tokens() -> None:
    values = np.random.default_rng(0).gamma(0.5, size=1001)
    same = np.arange(1001) % 4 > 0
    found = Divergence.of(values, same)
    ordered = np.sort(values)
    assert (found.median, found.percentile_90) == (ordered[500], ordered[900])
    assert (found.percentile_99, found.largest) == (ordered[990], ordered[1000])
    assert found.mean == pytest.approx(values.mean())
    assert found.mean_error == pytest.approx(torch.tensor(values).std().item() / 1001**0.5)
    assert found.same_first_choice == pytest.approx(750 / 1001)
    assert standard_error(np.array([3.0])) == 0
