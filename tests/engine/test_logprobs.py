from __future__ import annotations

import numpy as np
import pytest
import torch

from deepmnn.engine.logprobs import token_logprobs


@pytest.mark.parametrize("size", [1, 2, 7, 33, 5000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4, 5e37])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_torch_says_the_same(size: int, scale: float, count: int) -> None:
    rng = np.random.default_rng(size)
    logits = (rng.standard_normal(size) * scale).astype(np.float32)
    wanted = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    token = int(rng.integers(size))
    made = token_logprobs(logits, token, count)
    assert made.id == token
    assert made.logprob == pytest.approx(float(wanted[token]), rel=1e-12, abs=1e-12)
    best = wanted.topk(min(count, size))
    assert list(made.top) == best.indices.tolist()
    assert list(made.top.values()) == pytest.approx(best.values.tolist(), rel=1e-12, abs=1e-12)
    assert max([made.logprob, *made.top.values()]) <= 0


def test_of_equals_the_first_come_first() -> None:
    logits = np.zeros(50, np.float32)
    logits[[7, 30]] = 1.0
    assert list(token_logprobs(logits, 3, 5).top) == [7, 30, 0, 1, 2]


def test_a_token_that_is_ruled_out() -> None:
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    made = token_logprobs(logits, 0, 3)
    assert made.logprob == pytest.approx(np.log(0.5))
    assert made.top == {0: made.logprob, 2: made.logprob, 1: -np.inf}
