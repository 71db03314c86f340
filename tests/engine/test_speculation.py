"""Answers are the same with guesses as without, whatever is guessed."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepmnn.backends.base import F32, Batch
from deepmnn.engine.engine import Engine
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.depth import Depth, Fixed
from deepmnn.engine.speculation.drafter import NOTHING
from deepmnn.engine.speculation.economy import Economy
from deepmnn.engine.speculation.ngram import NgramDrafter
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, FakeCache, expected_answer, expected_logits
from guessing import RandomDepth, ScriptedDrafter, guess_ahead

VOCAB = 97


def make_engine(
    blocks: int = 64, block_size: int = 4, context: int = 1000, **limits: int
) -> tuple[Engine, FakeBackend]:
    backend = FakeBackend()
    return Engine(backend, blocks * block_size, context, block_size=block_size, **limits), backend


def run(engine: Engine, limit: int = 10_000) -> None:
    while engine.scheduler.busy:
        engine.step()
        check_blocks(engine)
        limit -= 1
        assert limit, "the engine does not come to an end"
    assert engine.manager.free_blocks == engine.cache.blocks


def check_blocks(engine: Engine) -> None:
    """Every block that can be found by its tokens holds their rows; nothing guessed is left."""
    manager, cache = engine.manager, engine.cache
    assert isinstance(cache, FakeCache)
    for sequence in [*engine.scheduler.running, *engine.scheduler.waiting]:
        assert sequence.length <= len(sequence.ids)
        assert (
            len(sequence.blocks) <= -(-sequence.length // cache.block_size) or not sequence.blocks
        )
        for index, key in enumerate(sequence.keys):
            assert key == manager._chain(sequence, index)
        for row in range(sequence.length if sequence.blocks else 0):
            block = sequence.blocks[row // cache.block_size]
            assert cache.tokens[block, row % cache.block_size] == sequence.ids[row]
    for key, block in manager._block_of.items():
        assert len(key) < 16 or (cache.tokens[block] >= 0).all()


def plain(ids: list[int], params: SamplingParams, eos: frozenset[int] = frozenset()) -> Sequence:
    """The answer without guesses, alone in a large cache."""
    engine, _ = make_engine(blocks=250)
    engine.eos_ids = eos
    made = engine.submit(ids, params)
    while engine.scheduler.busy:
        engine.step()
    return made


class Truth:
    """What plain decoding says, for any sequence, by its prompt and how it is sampled."""

    def __init__(self, eos: frozenset[int] = frozenset()) -> None:
        self._eos = eos
        self._known: dict[tuple[object, ...], Sequence] = {}

    def of(self, sequence: Sequence) -> Sequence:
        prompt, params = sequence.ids[: sequence.prompt_tokens], sequence.params
        key = (*prompt, params)
        if key not in self._known:
            self._known[key] = plain(prompt, params, self._eos)
        return self._known[key]

    def answer(self, sequence: Sequence) -> list[int]:
        return self.of(sequence).answer


def random_params(rng: random.Random, most: int) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.7, 1.5]),
        top_k=rng.choice([0, 0, 5]),
        top_p=rng.choice([1.0, 0.9]),
        seed=rng.randrange(1000),
        max_tokens=rng.randint(1, most),
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.3]),
        logprobs=rng.choice([None, 0, 3]),
        ignore_eos=rng.random() < 0.3,
    )


@pytest.mark.parametrize("right", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_without_guesses(seed: int, right: float, tmp_path: Path) -> None:
    """Random arrivals, siblings, cancellations, chunks and caches too small for all; with a disk
    for what makes room, and without.
    """
    rng = random.Random(seed)
    eos = frozenset(rng.sample(range(VOCAB), 3))
    engine, backend = make_engine(
        blocks=rng.randint(14, 40),
        block_size=rng.choice([1, 2, 4, 7]),
        max_batch_tokens=rng.choice([3, 8, 64]),
        max_sequences=rng.randint(1, 16),
        **({"kv_disk": 1 << 20, "kv_directory": tmp_path} if seed % 2 else {}),  # type: ignore
    )
    engine.eos_ids = eos
    truth = Truth(eos)
    drafter = ScriptedDrafter(truth.answer, right, VOCAB, seed)
    made = guess_ahead(engine, drafter, depth=RandomDepth(seed))
    if seed % 3 == 0:  # as a drafter that takes time
        made.lookup, made.model = None, drafter
    asked: list[Sequence] = []
    for _ in range(60):
        if rng.random() < 0.3:
            prompt = [rng.randrange(3) for _ in range(rng.randint(1, engine.context_length - 2))]
            most = min(25, engine.context_length - len(prompt))
            first = engine.submit(prompt, random_params(rng, most))
            asked.append(first)
            for number in range(1, rng.choice([1, 1, 3])):
                asked.append(first.sibling(number, None))
                engine.scheduler.add(asked[-1])
        if rng.random() < 0.03 and asked:
            engine.cancel(rng.choice(asked))
        engine.step()
        check_blocks(engine)
    run(engine)
    assert asked
    drafted, accepted = 0, 0
    for sequence in asked:
        expected = truth.of(sequence)
        if sequence.finish_reason == "cancelled":
            assert sequence.answer == expected.answer[: len(sequence.answer)]
            continue
        assert sequence.answer == expected.answer
        assert sequence.finish_reason == expected.finish_reason
        assert sequence.logprobs == expected.logprobs
        drafted += sequence.drafted_tokens
        accepted += sequence.accepted_tokens
    assert drafter.forgotten >= len(asked)
    assert (accepted == 0) == (right == 0.0 or not drafted)
    assert accepted == drafted or right < 1.0
    if right == 1.0 and engine.scheduler.max_batch_tokens > 3:
        assert accepted > 0
    assert all(len(batch.ids) <= engine.scheduler.max_batch_tokens for batch in backend.steps)


def test_right_guesses_save_steps_and_wrong_ones_cost_none() -> None:
    for right, steps in ((1.0, 1 + 4), (0.0, 1 + 35)):
        engine, backend = make_engine()
        truth = Truth()
        guess_ahead(engine, ScriptedDrafter(truth.answer, right, VOCAB), depth=Fixed(8))
        made = engine.submit([1, 2, 3], SamplingParams(max_tokens=36, ignore_eos=True))
        run(engine)
        assert len(backend.steps) == steps
        assert made.answer == expected_answer([1, 2, 3], 36, VOCAB)


def test_what_was_guessed_wrong_is_found_by_nobody() -> None:
    """Blocks are registered under what was said; a prompt that is the wrong guess runs anew."""
    engine, _ = make_engine(block_size=4)
    answer = expected_answer([1, 2], 30, VOCAB)
    wrong = [(token + 1) % VOCAB for token in answer]
    guess_ahead(engine, ScriptedDrafter(lambda sequence: wrong, 1.0, VOCAB))
    made = engine.submit([1, 2], SamplingParams(max_tokens=20, ignore_eos=True))
    run(engine)
    assert made.answer == answer[:20]
    engine.speculation = None
    for said, cached in ((answer, 20), (answer[:1] + wrong[1:], 0)):
        again = engine.submit([1, 2, *said[:20]], SamplingParams(max_tokens=3, ignore_eos=True))
        run(engine)
        assert again.cached_tokens == cached
        assert again.answer == expected_answer([1, 2, *said[:20]], 3, VOCAB)


def test_a_guess_that_cannot_be_run_ends_nothing() -> None:
    """An expert that only a wrong guess needs; and one that the answer needs."""
    engine, backend = make_engine()
    answer = expected_answer([5, 6], 12, VOCAB)
    backend.raising = {next(token for token in range(VOCAB) if token not in {5, 6, *answer})}
    [bad] = backend.raising
    guess_ahead(engine, ScriptedDrafter(lambda s: [*answer[:4], bad, *answer[5:]], 1.0, VOCAB))
    made = engine.submit([5, 6], SamplingParams(max_tokens=12, ignore_eos=True))
    run(engine)
    assert made.answer == answer
    backend.raising = {answer[7]}
    made = engine.submit([5, 6], SamplingParams(max_tokens=12, ignore_eos=True))
    run(engine)
    assert isinstance(made.error, RuntimeError)
    assert made.answer == answer[:8]


def test_a_guess_after_which_logits_are_no_numbers() -> None:
    engine, backend = make_engine()
    answer = expected_answer([5, 6], 12, VOCAB)
    spoilt = next(token for token in range(VOCAB) if token not in {5, 6, *answer})
    backend.spoilt = {spoilt}
    guess_ahead(engine, ScriptedDrafter(lambda s: [spoilt] * 12, 1.0, VOCAB))
    made = engine.submit([5, 6], SamplingParams(max_tokens=12, ignore_eos=True))
    run(engine)
    assert made.answer == answer


def test_a_drafter_that_fails_is_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(ScriptedDrafter):
        def propose(self, asked):  # type: ignore[no-untyped-def]
            if self.asked == 2:
                raise RuntimeError("the drafter's")
            return super().propose(asked)

    engine, _ = make_engine()
    drafter = Failing(Truth().answer, 1.0, VOCAB)
    made = guess_ahead(engine, model=drafter)
    sequences = [
        engine.submit([n, 2], SamplingParams(max_tokens=40, ignore_eos=True)) for n in range(3)
    ]
    run(engine)
    for n, sequence in enumerate(sequences):
        assert sequence.answer == expected_answer([n, 2], 40, VOCAB)
        assert sequence.accepted_tokens == 16
    assert made.model is None
    assert "the drafter has failed, and is off from now on" in caplog.text


def test_rows_of_guesses_are_no_reason_to_preempt() -> None:
    """Beside a full cache there are no guesses; nobody gives way to them."""
    engine, _ = make_engine(blocks=8, block_size=2)
    truth = Truth()
    guess_ahead(engine, ScriptedDrafter(truth.answer, 0.3, VOCAB))
    sequences = [
        engine.submit([n, 1, 2], SamplingParams(max_tokens=4, ignore_eos=True)) for n in range(3)
    ]
    run(engine)
    assert [sequence.preemptions for sequence in sequences] == [0, 0, 0]
    for n, sequence in enumerate(sequences):
        assert sequence.answer == expected_answer([n, 1, 2], 4, VOCAB)


@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_sampled_tokens_have_the_models_distribution(right: float) -> None:
    """Chi-square of pairs of tokens over a tiny vocabulary. A drafter that guesses the likeliest
    tokens, or wrong ones, changes nothing of it; nor, for a seed, of the tokens themselves.
    """
    vocab, answers = 5, 3000
    backend = FakeBackend(vocab)
    engine = Engine(backend, 4096, 1000, block_size=4)
    likeliest = expected_answer([1, 2], 3, vocab)
    guess_ahead(engine, ScriptedDrafter(lambda s: likeliest, right, vocab))
    made = [
        engine.submit([1, 2], SamplingParams(temperature=1.0, seed=n, max_tokens=3))
        for n in range(answers)
    ]
    run(engine)
    seen = Counter((sequence.answer[0], sequence.answer[1]) for sequence in made)
    expected = {}
    first = np.exp(expected_logits([1, 2], vocab))
    for a, p in enumerate(first / first.sum()):
        second = np.exp(expected_logits([1, 2, a], vocab))
        for b, q in enumerate(second / second.sum()):
            expected[a, b] = answers * p * q
    square = sum((seen[pair] - mean) ** 2 / mean for pair, mean in expected.items())
    assert square < 43.0, "the 99 % point for 24 degrees of freedom"
    plain_engine = Engine(FakeBackend(vocab), 4096, 1000, block_size=4)
    without = [plain_engine.submit([1, 2], replace(sequence.params)) for sequence in made[:300]]
    run(plain_engine)
    assert [s.answer for s in without] == [s.answer for s in made[:300]]
    assert sum(s.accepted_tokens for s in made) > 0 or right == 0.0


def test_a_rejection_scheme_accepts_as_often() -> None:
    """Of a drafter that guesses its likeliest token: min(1, p / q) with q = 1 is p, which is how
    often a draw from p is that token.
    """
    logits = expected_logits([4, 4], 7)
    p = np.exp(logits) / np.exp(logits).sum()
    guess = int(p.argmax())
    rng = np.random.default_rng(5)
    rejection = rng.random(40_000) < min(1.0, p[guess] / 1.0)
    drawn = rng.choice(7, 40_000, p=p) == guess
    assert abs(rejection.mean() - drawn.mean()) < 4 * np.sqrt(0.5 / 40_000)


class Judging(Economy):
    """Gives up after so many steps, and tries again after so many seconds."""

    def __init__(self, steps: int, wait: float) -> None:
        super().__init__()
        self.steps, self.wait, self.left, self.asked = steps, wait, steps, list[int]()

    def follows(self, prompt_tokens: int) -> bool:
        self.asked.append(prompt_tokens)
        return self.left > 0

    def elapse(self, seconds: float) -> None:
        self.wait -= seconds
        if self.wait < 0:
            self.left = self.steps

    def book(self, saved: float, tokens: int, step: float) -> None:
        self.left -= 1
        self.pays = self.left > 0


def test_a_drafter_that_loses_reads_nothing_until_it_is_tried_again() -> None:
    engine, _ = make_engine()
    drafter = ScriptedDrafter(Truth().answer, 1.0, VOCAB)
    made = guess_ahead(engine, model=drafter)
    economy = made.depth.economy = Judging(3, 1e9)
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    for prompt in ([1, 2, 3], [4, 5]):
        first = engine.submit(prompt, params)
        run(engine)
        assert first.answer == expected_answer(prompt, 30, VOCAB)
    assert (economy.asked, drafter.followed) == ([3, 2], 1)
    assert drafter.asked == 2, "in the steps behind the prompt's"
    economy.wait = 0.0
    engine.submit([6], params)
    run(engine)
    assert drafter.followed == 1, "time passes while it runs"
    engine.submit([6], params)
    run(engine)
    assert drafter.followed == 2


def test_a_model_that_says_nothing_leaves_no_rows_and_what_was_looked_up() -> None:
    class Silent(ScriptedDrafter):
        def propose(self, asked):  # type: ignore[no-untyped-def]
            return [NOTHING] * len(asked)

    engine, backend = make_engine()
    backend.logits_after = lambda ids: np.eye(VOCAB, dtype=np.float32)[(ids[-1] + 1) % 7] * 9  # type: ignore
    made = guess_ahead(engine, NgramDrafter(3), Silent(Truth().answer, 1.0, VOCAB))
    looked = engine.submit([*range(7), *range(7)], SamplingParams(max_tokens=40, ignore_eos=True))
    run(engine)
    assert looked.accepted_tokens > 20
    made.lookup = None
    none = engine.submit([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))
    run(engine)  # checks the blocks
    assert none.drafted_tokens == 0


def test_text_that_has_stopped_to_repeat_is_looked_at_seldom() -> None:
    class Counting(FakeBackend):
        """Repeats 20 tokens, then says each pair once."""

        def step(self, cache: FakeCache, batch: Batch) -> F32:
            time.sleep(2e-4)
            return super().step(cache, batch)

        def logits_after(self, ids: list[int]) -> F32:
            after = (ids[-1] + 1) % 20 if len(ids) < 300 else len(ids)
            return np.eye(self.vocab_size, dtype=np.float32)[after]

    engine = Engine(Counting(2000), 40_000, 5000, block_size=4)
    always, depth = Fixed(8), Depth()  # whether guesses pay is chance where the machine is busy
    made = guess_ahead(engine, NgramDrafter(8), depth=always)
    answer = engine.submit(
        [*range(20), *range(20)], SamplingParams(max_tokens=1000, ignore_eos=True)
    )
    looks: list[bool] = []
    while engine.scheduler.busy:
        made.depth = always if len(answer.ids) <= 300 else depth
        engine.step()
        if len(answer.ids) > 330:
            looks.append(made._looked)
    assert answer.accepted_tokens > 100
    assert len(looks) > 600
    assert sum(looks) < 0.5 * len(looks)


def test_ngrams_beside_a_model() -> None:
    """Prompts that repeat: what is looked up costs nothing, and is taken where it is as good."""
    engine, backend = make_engine()
    backend.logits_after = lambda ids: np.eye(VOCAB, dtype=np.float32)[(ids[-1] + 1) % 7] * 9  # type: ignore
    model = ScriptedDrafter(lambda s: [(s.ids[-1] + 1 + n) % 7 for n in range(99)], 1.0, VOCAB)
    guess_ahead(engine, NgramDrafter(8), model)
    made = engine.submit([*range(7), *range(7)], SamplingParams(max_tokens=60, ignore_eos=True))
    run(engine)
    assert made.answer == [n % 7 for n in range(60)]
    assert len(backend.steps) <= 9


def test_a_new_sequence_wakes_who_looks_seldom() -> None:
    """Even one whose prompt is a single token; one that runs does not."""
    engine, _ = make_engine()
    made = guess_ahead(engine, depth=Depth())  # nobody guesses: it sleeps as long as it may
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    engine.submit([1], params)
    for _ in range(10):
        engine.step()
    assert made._slept == 9
    second = engine.submit([2], params)
    engine.step()
    assert made._slept == 0
    assert second in made._records
    run(engine)
    assert not made._records


def test_what_a_model_reads_is_guessed_for_where_nothing_is_looked_up() -> None:
    """It takes time beside its guesses, and must bring them, whatever look-ups found before."""
    engine, _ = make_engine()
    drafter = ScriptedDrafter(Truth().answer, 1.0, VOCAB)
    depth = Depth()
    depth.economy = None  # or it may be given up first, where the machine is busy
    made = guess_ahead(engine, NgramDrafter(3), drafter, depth=depth)
    made._idle, made._patience = 1e9, 0  # looking has found nothing in a long time
    answer = engine.submit([1, 2, 3], SamplingParams(max_tokens=50, ignore_eos=True))
    run(engine)
    assert answer.answer == expected_answer([1, 2, 3], 50, VOCAB)
    assert drafter.asked > 0
