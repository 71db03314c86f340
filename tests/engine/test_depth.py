"""How far to guess ahead, by simulation: engines that take what a formula says, guesses that are
right by chance."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from deepmnn.engine.speculation.depth import Acceptance, Costs, Depth, Fixed, Offer

Seconds = Callable[[int], float]

COSTS: dict[str, Seconds] = {
    "dense": lambda rows: 1.0 + 0.02 * (rows - 1),
    "dense, small caches": lambda rows: 1.0 + 0.12 * (rows - 1),
    "experts": lambda rows: 0.35 + 0.65 * min(rows, 1 + 0.8 * (rows - 1), 24.0),
    "experts, streamed": lambda rows: 0.05 + 0.95 * rows,
    "tiles of four": lambda rows: 0.6 + 0.4 * -(-rows // 4),
    "nothing but arithmetic": lambda rows: float(rows),
}
RATES = (0.0, 0.3, 0.6, 0.8, 0.95)


def alike(rate: float, most: int, dear: bool = False) -> Offer:
    """Each guess is right as often as the one before."""
    return Offer([rate**place for place in range(1, most + 1)], dear)


def simulate(
    depth: Depth,
    cost: Seconds,
    rate: float,
    answers: int = 1,
    tokens: int = 4000,
    draft: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> float:
    """Tokens a second until every answer has so many; acceptance is learned as the engine does."""
    rng = random.Random(seed)
    known = [Acceptance() for _ in range(answers)]
    everyone = Acceptance()
    done, seconds = 0, 0.0
    while done < tokens * answers:
        prior = everyone.rate(0.6)
        offers = [alike(each.rate(prior), 8, draft > 0) for each in known]
        depths = depth.choose(offers, 64)
        rows = answers + sum(depths)
        took = cost(rows) * (1 + noise * rng.random() + (noise * 20 if rng.random() < 0.02 else 0))
        drafting = draft * max(depths)
        for each, count in zip(known, depths, strict=True):
            right = 0
            while right < count and rng.random() < rate:
                right += 1
            done += 1 + right
            if count or not draft:  # what is looked up is compared, whether it was run or not
                hit = right if count else int(rng.random() < rate)
                for record in (each, everyone):
                    for _ in range(hit):
                        record.add(True)
                    if hit < max(1, count):
                        record.add(False)
        seconds += took + drafting
        depth.learn(rows, took, 0.0, drafting, max(depths) if draft else 0)
    return done / seconds


def best_fixed(cost: Seconds, rate: float, answers: int, draft: float) -> float:
    return max(
        answers
        * sum(rate**n for n in range(depth + 1))
        / (cost(answers * (1 + depth)) + draft * depth)
        for depth in range(9)
        if answers * (1 + depth) <= 64
    )


@pytest.mark.parametrize("answers", [1, 12])
@pytest.mark.parametrize("draft", [0.0, 0.1])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", COSTS)
def test_never_slower_and_nearly_the_best(
    name: str, rate: float, draft: float, answers: int
) -> None:
    cost = COSTS[name]
    plain = answers / cost(answers)
    best = best_fixed(cost, rate, answers, draft)
    depth = Depth()
    first = simulate(depth, cost, rate, answers, 1000, draft)
    assert first >= 0.97 * plain
    got = simulate(depth, cost, rate, answers, 6000 // answers, draft, seed=1)
    assert got >= 0.97 * plain
    assert got >= 0.85 * best, f"{got / plain:.2f} times plain, the best depth {best / plain:.2f}"


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", COSTS)
def test_with_a_clock_that_errs(name: str, rate: float) -> None:
    """Steps take up to 10 % longer, one in 50 three times as long."""
    cost = COSTS[name]
    got = simulate(Depth(), cost, rate, tokens=1500, draft=0.04, noise=0.1)
    plain = simulate(Fixed(0), cost, rate, tokens=1500, noise=0.1, seed=1)
    assert got >= 0.95 * plain
    assert got >= 0.85 * plain * best_fixed(cost, rate, 1, 0.04) * cost(1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", COSTS)
def test_a_short_answer_of_a_new_engine(name: str, rate: float) -> None:
    """Of 120 tokens; what is tried in it is known for good. The plain step at first is in it."""
    cost = COSTS[name]
    got = simulate(Depth(), cost, rate, tokens=120, draft=0.04)
    assert got >= 0.93 / cost(1)


def test_it_finds_out_that_guesses_have_become_good() -> None:
    depth, cost = Depth(), COSTS["dense"]
    assert simulate(depth, cost, 0.0, tokens=3000, draft=0.04) >= 0.97
    assert simulate(depth, cost, 0.8, tokens=3000, draft=0.04) >= 0.8 * best_fixed(
        cost, 0.8, 1, 0.04
    )
    assert simulate(depth, cost, 0.0, tokens=3000, draft=0.04) >= 0.96


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_long_good_time_is_no_credit_for_a_bad_one(rate: float) -> None:
    """After a day of guesses that are right it loses no more with trials than after none."""
    depth, cost = Depth(), COSTS["dense, small caches"]
    simulate(depth, cost, 0.95, tokens=100_000)
    got = simulate(depth, cost, rate, tokens=3000, seed=1)
    assert got >= 0.96 / cost(1)


def test_guesses_go_where_they_are_likely() -> None:
    depth = Depth(probes=0.0)
    for rows in range(1, 30):
        for _ in range(3):
            depth.learn(rows, 1 + 0.1 * rows, 0.0, 0.0, 0)
    offers = [alike(0.9, 8), alike(0.05, 8), alike(0.9, 2), alike(0.9, 0)]
    first, second, third, fourth = depth.choose(offers, 64)
    assert first > third == 2
    assert second == fourth == 0
    assert sum(depth.choose(offers, 6)) == 2, "no more rows than a step may have"
    assert depth.choose(offers, 4) == [0, 0, 0, 0]
    assert depth.choose([alike(0.0, 0)], 64) == [0]


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = Costs()
    for _ in range(3):
        costs.learn(2, 3.0)
        costs.learn(6, 5.0)
    assert costs.largest == 6
    assert [costs.of(rows) for rows in (1, 2, 4, 6, 8)] == [3.0, 3.0, 4.0, 5.0, 6.0]
    costs.learn(4, 40.0)
    assert costs.of(4) == 4.0, "one dear step is not believed"
    costs.learn(4, 40.0)
    costs.learn(4, 40.0)
    assert costs.of(4) == 40.0


def test_acceptance_follows_what_happens() -> None:
    made = Acceptance()
    assert made.rate(0.6) == 0.6
    for _ in range(300):
        for hit in (True, True, True, False):
            made.add(hit)
    assert made.rate(0.6) == pytest.approx(0.75, abs=0.03)
    for _ in range(300):
        made.add(False)
    assert made.rate(0.6) < 0.11


def test_what_plain_steps_take_is_measured_again() -> None:
    """They were slow when guesses began to pay; since all steps are fast, guesses lose."""
    depth = Depth()
    for rows in [1, 2] * 9:
        depth.learn(rows, 3.0, 0.0, 0.3 * (rows - 1), rows - 1)
    assert depth.choose([alike(0.95, 1, dear=True)], 8) == [1]
    for _ in range(3000):
        depths = depth.choose([alike(0.95, 1, dear=True)], 8)
        rows = 1 + depths[0]
        depth.learn(rows, 0.4 + 0.6 * rows, 0.0, 0.6 * depths[0], depths[0])
    tried = [depth.choose([alike(0.95, 1, dear=True)], 8)[0] for _ in range(20)]
    assert sum(tried) <= 2
