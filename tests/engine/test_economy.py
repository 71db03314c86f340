"""Whether a drafter is kept, by simulation: so much is read, so much saved."""

from __future__ import annotations

import pytest

from deepmnn.engine.speculation.economy import Economy


def simulate(
    economy: Economy, answers: int, prompt: int, length: int, read: float, saved: float
) -> tuple[float, int]:
    """(part of the time that was lost, answers whose prompts were read) of answers one by one.

    read: seconds a token of the prompt, where a plain step takes 1 and a prompt's token 0.05.
    saved: seconds a step of what is followed.
    """
    lost, plain, followed = 0.0, 0.0, 0
    for _ in range(answers):
        following = economy.follows(prompt)
        plain += 0.05 * prompt + length
        economy.elapse(0.05 * prompt)
        if following:
            followed += 1
            lost += read * prompt
            economy.read(prompt, read * prompt)
        for _ in range(length):
            economy.elapse(1.0)
            if following:
                lost -= saved
                economy.book(saved, 1, 1.0)
                following = economy.pays
        economy.ended(length)
    return lost / plain, followed


def test_what_pays_is_kept() -> None:
    lost, followed = simulate(Economy(), 100, 200, 100, read=0.002, saved=0.2)
    assert followed == 100
    assert lost == pytest.approx((0.4 - 20) / 110)


@pytest.mark.parametrize("saved", [-0.02, -0.1, -0.5, -3.0])
def test_what_does_not_pay_is_given_up(saved: float) -> None:
    lost, followed = simulate(Economy(), 200, 20, 100, read=0.002, saved=saved)
    assert lost < 0.015
    assert 1 <= followed < 100, "and tried again now and then"


@pytest.mark.parametrize("prompt", [1000, 20_000])
def test_prompts_that_take_more_than_answers_save_are_not_read(prompt: int) -> None:
    economy = Economy()
    lost, followed = simulate(economy, 200, prompt, 10, read=0.02, saved=0.2)
    assert lost < 0.02
    assert 1 <= followed < 50
    assert economy.follows(50), "a short one is"


def test_what_has_become_good_is_found_out() -> None:
    economy = Economy()
    simulate(economy, 100, 20, 100, read=0.002, saved=-0.5)
    lost, followed = simulate(economy, 100, 20, 100, read=0.002, saved=0.3)
    assert lost < -0.15
    assert followed > 60


def test_a_small_loss_is_borne_to_the_end_of_an_answer() -> None:
    lost, _ = simulate(Economy(), 1, 0, 5000, read=0.0, saved=-0.002)
    assert lost == pytest.approx(0.002)
