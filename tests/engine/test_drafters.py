"""What drafters guess, and that answers with them are those without."""

from __future__ import annotations

import random
from collections.abc import Sequence as List
from dataclasses import replace

import numpy as np
import pytest

from deepmnn.backends.base import F32, Batch, check_batch
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.depth import Depth
from deepmnn.engine.speculation.drafter import Guess
from deepmnn.engine.speculation.model import ModelDrafter
from deepmnn.engine.speculation.mtp import MtpDrafter
from deepmnn.engine.speculation.ngram import NgramDrafter
from deepmnn.text.sampling_params import SamplingParams
from fake_backend import FakeBackend, FakeCache, expected_answer, expected_logits
from guessing import RandomDepth, guess_ahead

VOCAB = 97


# -------------------------------------------------------------------------------------- n-grams


def scan(ids: list[int], count: int) -> list[int]:
    """The longest match, of equals the newest, up to 12 tokens: by looking everywhere."""
    best, found = 1, None
    for place in range(len(ids) - 1, 1, -1):
        same = 0
        while same < min(12, place) and ids[place - 1 - same] == ids[len(ids) - 1 - same]:
            same += 1
        if same > best:
            best, found = same, place
    if found is None:
        return []
    tokens = list(ids)
    for n in range(count):
        tokens.append(tokens[found + n])
    return tokens[len(ids) :]


def looking_up(most: int, sequence: Sequence) -> NgramDrafter:
    drafter = NgramDrafter(most)
    drafter.follow(sequence)
    return drafter


def looked_up(ids: list[int], count: int) -> Guess:
    sequence = Sequence(ids)
    [guess] = looking_up(6, sequence).propose([(sequence, count)])
    return guess


@pytest.mark.parametrize("seed", range(10))
def test_an_index_that_grows_finds_what_a_scan_finds(seed: int) -> None:
    """Where the last two tokens stood in no more places than are compared."""
    rng = random.Random(seed)
    sequence = Sequence([rng.randrange(30) for _ in range(20)])
    drafter, found = looking_up(8, sequence), 0
    for _ in range(150):
        count = rng.randint(1, 8)
        [guess] = drafter.propose([(sequence, count)])
        wanted = scan(sequence.ids, count)
        places = sum(
            sequence.ids[n : n + 2] == sequence.ids[-2:] for n in range(len(sequence.ids) - 2)
        )
        if places <= 8:
            assert list(guess.tokens) == wanted
            found += bool(wanted)
        if rng.random() < 0.1:
            start = rng.randrange(len(sequence.ids) - 6)
            sequence.ids += sequence.ids[start : start + 6]
        sequence.ids += [rng.randrange(30) for _ in range(rng.randint(1, 3))]
    assert found > 10


def test_kinds_are_lengths_and_texts_that_repeat_are_followed() -> None:
    guess = looked_up([*range(20), 50, *range(9)], 6)
    assert (list(guess.tokens), guess.kinds) == ([9, 10, 11, 12, 13, 14], ["8-gram"] * 6)
    guess = looked_up([1, 2, 7, 1, 2], 6)
    assert (list(guess.tokens), guess.kinds) == ([7, 1, 2, 7, 1, 2], ["2-gram"] * 6)
    for ids in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4]):
        assert not looked_up(ids, 6).tokens
    assert not looked_up([5] * 9, 0).tokens


def test_a_long_prompt_is_indexed_over_several_steps() -> None:
    sequence = Sequence([*range(20_000), 5, 6])
    drafter = looking_up(4, sequence)
    guesses = [drafter.propose([(sequence, 4)])[0] for _ in range(3)]
    assert [list(guess.tokens) for guess in guesses] == [[], [], [7, 8, 9, 10]]
    drafter.forget(sequence)
    drafter.follow(sequence)
    assert not drafter.propose([(sequence, 4)])[0].tokens, "it starts again"


# --------------------------------------------------------------------------------- a second model


class Nearly(FakeBackend):
    """Says what FakeBackend says, but for every `wrong`-th history another token."""

    def __init__(self, wrong: int, vocab_size: int = VOCAB) -> None:
        super().__init__(vocab_size)
        self._wrong = wrong

    def logits_after(self, ids: list[int]) -> F32:
        logits = expected_logits(ids, VOCAB) * (-1 if sum(ids) % self._wrong == 0 else 1)
        beyond = np.full(self.vocab_size - VOCAB, 99, np.float32)  # ids that the other has not
        return np.concatenate([logits, beyond])


def answers(engine: Engine, prompts: List[list[int]], params: SamplingParams) -> list[Sequence]:
    made = [engine.submit(ids, params) for ids in prompts]
    steps = 0
    while engine.scheduler.busy:
        engine.step()
        steps += 1
        assert steps < 5000
    return made


@pytest.mark.parametrize("rows", [4000, 96])
@pytest.mark.parametrize("seed", range(4))
def test_a_model_guesses(seed: int, rows: int) -> None:
    """Rows of its cache stand for what was said, also where that is too small for all."""
    rng = random.Random(seed)
    engine = Engine(FakeBackend(), 4000, 1000, block_size=4, max_batch_tokens=rng.choice([32, 64]))
    backend = Nearly(7, VOCAB + 4)
    small = Engine(backend, rows, 1000, block_size=4, max_batch_tokens=rng.choice([24, 64]))
    drafter = ModelDrafter(small, VOCAB, 5)
    guess_ahead(engine, model=drafter, depth=RandomDepth(seed))
    prompts = [[rng.randrange(5) for _ in range(rng.randint(1, 40))] for _ in range(16)]
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    made = answers(engine, prompts, params)
    for ids, sequence in zip(prompts, made, strict=True):
        assert sequence.answer == expected_answer(ids, 30, VOCAB)
    drafted = sum(sequence.drafted_tokens for sequence in made)
    accepted = sum(sequence.accepted_tokens for sequence in made)
    assert drafted > 30
    assert 0.6 < accepted / drafted < 0.95, "its guesses are its own, from the right rows"
    assert small.manager.free_blocks == small.cache.blocks
    assert engine.manager.free_blocks == engine.cache.blocks


def test_a_model_with_a_short_context_stops_guessing() -> None:
    engine = Engine(FakeBackend(), 4000, 1000, block_size=4)
    small = Engine(Nearly(1 << 30), 4000, 30, block_size=4)
    guess_ahead(engine, model=ModelDrafter(small, VOCAB, 5))
    [made] = answers(engine, [[1, 2, 3]], SamplingParams(max_tokens=60, ignore_eos=True))
    assert made.answer == expected_answer([1, 2, 3], 60, VOCAB)
    assert 15 < made.accepted_tokens <= 30


def test_a_prompt_counts_once_however_it_is_read() -> None:
    """What reading takes is no guess's price: so it is known how much was read."""
    engine = Engine(FakeBackend(), 40_000, 1000, block_size=4)
    backend = Nearly(1 << 30)
    small = Engine(backend, 4000, 1000, block_size=4, max_batch_tokens=32)
    drafter, read = ModelDrafter(small, VOCAB, 5), []
    propose = drafter.propose

    def counted(asked: List[tuple[Sequence, int]]) -> list[Guess]:
        made = propose(asked)
        read.append(drafter.read_tokens)
        return made

    drafter.propose = counted  # type: ignore[method-assign]
    guess_ahead(engine, model=drafter)
    prompt = np.random.default_rng(2).integers(0, VOCAB, 640).tolist()
    [made] = answers(engine, [prompt], SamplingParams(max_tokens=60, ignore_eos=True))
    assert made.accepted_tokens > 20
    assert 600 <= sum(read) <= 700


def test_beyond_its_context_a_model_is_not_asked() -> None:
    engine = Engine(FakeBackend(), 40_000, 1000, block_size=4)
    small = Engine(Nearly(1 << 30), 4000, 60, block_size=4)
    drafter, asked = ModelDrafter(small, VOCAB, 5), []
    propose = drafter.propose

    def noted(wanted: List[tuple[Sequence, int]]) -> list[Guess]:
        asked.extend(wanted)
        return propose(wanted)

    drafter.propose = noted  # type: ignore[method-assign]
    guess_ahead(engine, model=drafter)
    long, short = answers(
        engine, [[1] * 80, [5, 6]], SamplingParams(max_tokens=30, ignore_eos=True)
    )
    assert {sequence for sequence, _ in asked} == {short}
    assert (long.drafted_tokens, short.accepted_tokens) == (0, 24)


def test_a_token_that_the_model_does_not_know() -> None:
    """Ids of a wider vocabulary, as clients may send: no guesses behind them, and for others as
    before.
    """

    class Small(FakeBackend):
        def step(self, cache: FakeCache, batch: Batch) -> F32:
            check_batch(batch, cache, self.vocab_size)  # as real ones do
            return super().step(cache, batch)

    engine = Engine(FakeBackend(VOCAB + 4), 4000, 1000, block_size=4)
    small = Engine(Small(VOCAB), 4000, 1000, block_size=4)
    made = guess_ahead(engine, model=ModelDrafter(small, VOCAB + 4, 5))
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    [odd] = answers(engine, [[1, 2, VOCAB + 1, 3]], params)
    assert odd.drafted_tokens == 0
    [usual] = answers(engine, [[1, 2, 3]], params)
    assert usual.drafted_tokens > 0
    assert made.model is not None


# ------------------------------------------------------------------------------------ a draft part


class DraftCache(FakeCache):
    """With the draft part's rows: pairs (id of the token, id of the next one)."""

    def __init__(self, blocks: int, block_size: int) -> None:
        super().__init__(blocks, block_size)
        self.pairs = np.full((blocks, block_size, 2), -1, np.int64)

    def copy_block(self, source: int, target: int) -> None:
        super().copy_block(source, target)
        self.pairs[target] = self.pairs[source]


class Drafting(FakeBackend):
    """With a draft part that checks that its rows are those of the pairs before, and guesses what
    the main part says, but for one in `wrong` histories.

    The state of a token is its position and its id; that of a guess has a position below 0.
    """

    draft_state = "hidden"

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong, self.drafts, self.pairs = wrong, 0, 0

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> FakeCache:
        return DraftCache(blocks, block_size)

    def run(self, cache: FakeCache, batch: Batch) -> dict[str, F32]:
        states = np.stack([batch.positions, batch.ids], axis=1).astype(np.float32)
        return {"logits": self.step(cache, batch), "hidden": states[batch.logit_rows]}

    def draft(self, cache: FakeCache, batch: Batch, state: F32) -> tuple[F32, F32]:
        assert isinstance(cache, DraftCache)
        self._check(cache, batch)
        self.drafts += 1
        self.pairs += len(batch.ids)
        assert np.abs(state[:, 0]).tolist() == batch.positions.tolist()
        logits = np.zeros((len(batch.ids), self.vocab_size), np.float32)
        for index, table in enumerate(batch.block_tables):
            begin, end = batch.sequence_starts[index : index + 2]
            for token in range(begin, end):
                block, slot = divmod(int(batch.positions[token]), cache.block_size)
                cache.pairs[table[block], slot] = state[token, 1], batch.ids[token]
            rows = np.arange(batch.context_lengths[index])
            pairs = cache.pairs[table[rows // cache.block_size], rows % cache.block_size]
            # The last row of a block that was found may be of a sequence that went on otherwise.
            linked = pairs[:-1, 1] == pairs[1:, 0]
            assert (linked | ((rows[:-1] + 1) % cache.block_size == 0)).all()
            assert (pairs >= 0).all()
            history = [*pairs[:, 0].tolist(), int(pairs[-1, 1])]
            logits[end - 1] = expected_logits(history, self.vocab_size)
            if sum(history) % self.wrong == 0:
                logits[end - 1] *= -1
        after = np.stack([-(batch.positions + 1.0), batch.ids], axis=1).astype(np.float32)
        return logits[batch.logit_rows], after[batch.logit_rows]


def drafting_engine(
    wrong: int, depth: Depth | None = None, blocks: int = 500, **limits: int
) -> tuple[Engine, Drafting]:
    backend = Drafting(wrong)
    engine = Engine(backend, blocks * 4, 1000, block_size=4, **limits)
    guess_ahead(engine, model=MtpDrafter(backend, engine.cache, 4), depth=depth)
    return engine, backend


def test_the_draft_part_guesses_all() -> None:
    engine, backend = drafting_engine(1 << 30)
    [made] = answers(engine, [[1, 2, 3]], SamplingParams(max_tokens=51, ignore_eos=True))
    assert made.answer == expected_answer([1, 2, 3], 51, VOCAB)
    assert made.accepted_tokens == made.drafted_tokens == 40
    assert len(backend.steps) == 1 + 10
    assert backend.drafts == 40


@pytest.mark.parametrize("wrong", [2, 3])
def test_it_guesses_behind_a_wrong_guess(wrong: int) -> None:
    """The states of wrong guesses wait behind those of real tokens, and are let go."""
    engine, backend = drafting_engine(wrong)
    [made] = answers(engine, [[1, 2, 3]], SamplingParams(max_tokens=80, ignore_eos=True))
    assert made.answer == expected_answer([1, 2, 3], 80, VOCAB)
    assert made.accepted_tokens < made.drafted_tokens
    steps = len(backend.steps) - 1
    assert made.drafted_tokens > 3.8 * (steps - 3), "four in nearly every step"


def test_the_head_runs_for_what_is_followed_alone() -> None:
    engine, backend = drafting_engine(1 << 30)
    engine.submit([1, 2, 3], SamplingParams(max_tokens=50, ignore_eos=True))
    for _ in range(2):
        engine.step()
    session = BlockTable([5] * 64)
    engine.manager.append(session, 64)
    assert engine.forward([Span(session, 64, 1)]).shape == (1, VOCAB)
    assert len(backend.steps[-1].logit_rows) == 1


@pytest.mark.parametrize("seed", range(8))
def test_every_pair_has_its_row(seed: int) -> None:
    """Prompts in chunks, batches, any depth, steps without guesses, rows that are found again."""
    rng = random.Random(seed)
    engine, _ = drafting_engine(
        rng.choice([2, 5, 50]),
        RandomDepth(seed),
        max_batch_tokens=rng.choice([7, 64]),
        max_sequences=rng.choice([1, 4, 16]),
    )
    shared = [rng.randrange(9) for _ in range(90)]
    prompts = [[*shared[: rng.randrange(90)], rng.randrange(9), 3] for _ in range(16)]
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    made = answers(engine, prompts, params)
    for ids, sequence in zip(prompts, made, strict=True):
        assert sequence.answer == expected_answer(ids, 40, VOCAB)
    assert sum(sequence.accepted_tokens for sequence in made) > 0
    assert engine.manager.free_blocks == engine.cache.blocks


def test_pairs_wait_where_nothing_is_guessed_and_run_together() -> None:
    class Never(Depth):
        def choose(self, offers, most_rows):  # type: ignore[no-untyped-def]
            return [0] * len(offers)

    never = Never()
    never.economy = None
    engine, backend = drafting_engine(3, never)
    [made] = answers(engine, [[*range(90)]], SamplingParams(max_tokens=200, ignore_eos=True))
    assert made.answer == expected_answer([*range(90)], 200, VOCAB)
    assert backend.drafts == 1 + 50, "one for each block"
    assert backend.pairs == 90 + 198


@pytest.mark.parametrize("blocks", [14, 20])
def test_preempted_sequences_are_drafted_for_again(blocks: int) -> None:
    engine, _ = drafting_engine(4, RandomDepth(1), blocks)
    prompts = [[n, n + 1, n + 2] for n in range(5)]
    made = answers(engine, prompts, replace(SamplingParams(), max_tokens=30, ignore_eos=True))
    assert sum(sequence.preemptions for sequence in made) > 0
    for ids, sequence in zip(prompts, made, strict=True):
        assert sequence.answer == expected_answer(ids, 30, VOCAB)
