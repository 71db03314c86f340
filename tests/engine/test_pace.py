"""How much of a prompt runs beside answers that are being written."""

import numpy as np
import pytest

from deepmnn.engine.engine import Engine, Step
from deepmnn.engine.pace import Pace
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, expected_answer


def taught(pace: Pace, plain: float, per_token: float, steps: int = 60) -> Pace:
    """After steps on a machine that takes these times."""
    for _ in range(steps):
        pace.learn(plain, 0)
        tokens = pace.prompt_tokens(512, 1, 1)
        pace.learn(plain + per_token * tokens, tokens)
    return pace


@pytest.mark.parametrize(("plain", "per_token"), [(0.02, 0.004), (0.09, 0.004), (0.003, 1e-4)])
def test_a_step_stays_below_the_bound(plain: float, per_token: float) -> None:
    tokens = taught(Pace(0.25), plain, per_token).prompt_tokens(512, 1, 1)
    took = plain + per_token * tokens
    assert took <= 0.25 + 1e-9
    assert tokens == 512 or took > 0.25 - 9 * per_token  # and no shorter than it must be


def test_without_a_bound_it_follows_the_step() -> None:
    tokens = taught(Pace(), 0.09, 0.004).prompt_tokens(512, 1, 1)
    assert 1.9 * 0.09 < 0.09 + 0.004 * tokens <= 2.25 * 0.09


def test_where_more_wait_than_run_they_wait_less() -> None:
    pace = taught(Pace(), 0.09, 0.004)
    tokens = [pace.prompt_tokens(512, 4, prompts) for prompts in (1, 4, 8, 12)]
    assert tokens[0] == tokens[1] < tokens[2] < tokens[3]
    assert 0.09 + 0.004 * tokens[3] <= 3 * 2.25 * 0.09
    bound = taught(Pace(0.25), 0.09, 0.004)
    assert bound.prompt_tokens(512, 1, 60) == bound.prompt_tokens(512, 60, 1)


def test_a_prompt_gets_on_in_any_case() -> None:
    assert taught(Pace(0.01), 0.09, 0.004).prompt_tokens(512, 1, 1) == 8
    assert Pace(0.01).prompt_tokens(512, 1, 1) == 8  # nothing is known yet
    assert Pace(0.01).prompt_tokens(3, 1, 1) == 3


def test_it_follows_a_machine_that_changes() -> None:
    pace = taught(Pace(0.25), 0.02, 0.001)
    before = pace.prompt_tokens(512, 1, 1)
    assert taught(pace, 0.02, 0.01).prompt_tokens(512, 1, 1) < before / 5


def test_prompts_run_in_short_spans_beside_answers_only() -> None:
    backend = FakeBackend()
    engine = Engine(backend, 4096, 2048, max_batch_tokens=512)
    engine.scheduler.pace = Pace(1e-9)  # the least
    steps: list[Step] = []
    engine.watch = steps.append
    short, long = [1, 2, 3], list(np.arange(400) % 90)
    params = SamplingParams(max_tokens=20)
    first = engine.submit(short, params)
    engine.step()
    second = engine.submit(long, params)
    while engine.scheduler.busy:
        engine.step()
    assert first.answer == expected_answer(short, 20, 97)
    assert second.answer == expected_answer(long, 20, 97)
    beside = [step for step in steps if step.answers and step.prompt_tokens]
    assert [step.prompt_tokens for step in beside] == [8] * 19
    rest = [step for step in steps[1:] if not step.answers]
    assert [step.prompt_tokens for step in rest] == [400 - 19 * 8]
    assert sum(step.prompt_tokens for step in steps) == 403
    assert all(step.seconds > 0 for step in steps)
