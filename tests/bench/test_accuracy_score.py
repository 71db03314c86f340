"""Divergence, agreement and perplexity, against torch and by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.accuracy.score import ROWS, NotFiniteError, score


def random_logits(rng: np.random.Generator, lengths: list[int], vocab: int) -> list[np.ndarray]:
    return [rng.normal(0, 4, (length, vocab)).astype(np.float32) for length in lengths]


def test_it_is_what_torch_says() -> None:
    rng = np.random.default_rng(0)
    lengths, vocab = [ROWS + 5, 1, 2 * ROWS], 31
    pieces = [rng.integers(0, vocab, length).tolist() for length in lengths]
    exact, model = (random_logits(rng, lengths, vocab) for _ in range(2))
    log_p, log_q = (
        torch.log_softmax(torch.tensor(np.concatenate(x)).double(), 1) for x in (exact, model)
    )
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    losses = [
        torch.nn.functional.cross_entropy(
            torch.tensor(rows[:-1]).double(), torch.tensor(ids[1:]).long(), reduction="none"
        )
        for rows, ids in zip(model, pieces, strict=True)
    ]
    found = score(exact, model, pieces)
    assert found.mean_kl == pytest.approx(kl.mean().item())
    assert found.kl_99 == pytest.approx(torch.quantile(kl, 0.99).item())
    assert found.same_first == (log_p.argmax(1) == log_q.argmax(1)).double().mean().item()
    assert found.perplexity == pytest.approx(torch.cat(losses).mean().exp().item())
    assert found.tokens == sum(lengths)


def test_two_tokens_by_hand() -> None:
    exact = [np.log(np.array([[0.5, 0.5], [0.9, 0.1]], np.float32))]
    model = [np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))]
    found = score(exact, model, [[0, 1]])
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.mean_kl == pytest.approx(divergence / 2, rel=1e-5)
    assert found.perplexity == pytest.approx(1 / 0.75, rel=1e-5)  # the second token is 1


def test_a_model_is_no_distance_from_itself_and_a_constant_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    exact = random_logits(rng, [70, 9], 50)
    shifted = [rows + np.float32(8) for rows in exact]
    found = score(exact, shifted, [[1] * 70, [2] * 9])
    assert found.mean_kl == pytest.approx(0, abs=1e-9)
    assert found.same_first == 1


def test_a_padded_vocabulary_is_cut() -> None:
    rng = np.random.default_rng(2)
    exact = random_logits(rng, [8], 20)
    padded = [np.pad(exact[0], ((0, 0), (0, 12)), constant_values=100)]
    assert score(exact, padded, [[0] * 8]) == score(exact, exact, [[0] * 8])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_no_score(value: float) -> None:
    exact = [np.zeros((3, 4), np.float32)]
    model = [np.zeros((3, 4), np.float32)]
    model[0][1, 2] = value
    with pytest.raises(NotFiniteError):
        score(exact, model, [[0, 1, 2]])


def test_rows_that_belong_to_other_text_are_refused() -> None:
    exact = [np.zeros((3, 4), np.float32)]
    with pytest.raises(ValueError, match="3 and 2 rows of logits for 3 tokens"):
        score(exact, [exact[0][:2]], [[0, 1, 2]])
    with pytest.raises(ValueError, match="shorter"):
        score(exact, [], [[0, 1, 2]])
