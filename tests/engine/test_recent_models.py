"""DeepSeek-V4 on a cache that keeps recent rows of few blocks: cut, shared, forked and guessed
ahead, it gives the logits of a cache that keeps them all, to the bit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn import LLM, SamplingParams
from deepmnn.backends.base import F32
from deepmnn.engine import recent_rows
from deepmnn.engine.speculation.depth import Fixed, Offer
from deepmnn.models.v4_config import HEAVILY, SPARSE
from tiny_models import CONFIGS, checkpoint_of, tiny_checkpoint

CONTEXT = 3000
KINDS = [0, 1, 3]
"""Configs with compressed layers of both kinds, and with blocks of 128, 42 and 32 tokens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    found = {}
    for index in KINDS:
        path = tmp_path_factory.mktemp("v4")
        tiny_checkpoint("deepseek_v4", index, path / "hf")
        config = path / "hf" / "config.json"
        fields = json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}
        config.write_text(json.dumps(fields))
        deepmnn.convert(path / "hf", path / "model", "fp32")
        found[index] = path / "model"
    return found


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_rows, "_IDLE", 1)


def load(path: Path, **options: object) -> LLM:
    given: dict[str, object] = {"threads": 1, "speculate": "off", "max_sequences": 2}
    given |= {"max_batch_tokens": 64, "cache_tokens": CONTEXT}
    return deepmnn.load(path, **(given | options))  # type: ignore[arg-type]


def whole(model: LLM, ids: list[int]) -> F32:
    """The logits after the last token, of a session of its own."""
    with model.session() as session:
        return session.prefill(ids)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, length).tolist()


def close(got: F32, want: F32) -> None:
    """Up to the order of sums: chunks of a prompt are other ones where some of it runs again."""
    np.testing.assert_allclose(got, want, atol=2e-5 * float(np.abs(want).max()))


def is_short(model: LLM) -> bool:
    cache = model.engine.cache
    return 0 < cache.recent_blocks < 0.6 * cache.blocks


def cuts(rng: random.Random) -> Iterator[int]:
    """How far a session is cut back: a little, to a border, far."""
    while True:
        yield rng.choice([rng.randint(1, 30), rng.randint(30, 200), rng.randint(200, 1200), 0])


@pytest.mark.parametrize("index", KINDS)
def test_a_session_is_cut_anywhere(models: dict[int, Path], few_places: None, index: int) -> None:
    model, rng = load(models[index]), random.Random(index)
    alone = load(models[index])
    assert is_short(model)
    with model.session() as session:
        session.prefill(prompt(2400, index))
        for number, cut in zip(range(8), cuts(rng), strict=False):
            session.rollback(max(0, session.length - cut))
            more = prompt(rng.randint(1, 60), 100 + number)
            got = session.prefill(more) if len(more) > 1 else session.decode(more[0])
            close(got, whole(alone, session.ids))


@pytest.mark.parametrize("index", KINDS)
def test_prefixes_are_shared(models: dict[int, Path], few_places: None, index: int) -> None:
    model = load(models[index])
    assert is_short(model)
    begin = prompt(1700, 1)
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=3)
    found = model.generate([begin + prompt(50, 2)], params)[0]
    assert found.cached_tokens == 0
    again = model.generate([begin + prompt(50, 3)], params)[0]
    assert again.cached_tokens % model.engine.manager.block_size == 0
    alone = load(models[index]).generate([begin + prompt(50, 3)], params)[0]
    assert again.ids == alone.ids
    for mine, other in zip(again.logprobs or (), alone.logprobs or (), strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
    # the end of the first prompt is what has its recent rows still: it is gone on from
    longer = model.generate([begin + prompt(50, 2) + prompt(5, 4)], params)[0]
    assert longer.cached_tokens >= 1664


@pytest.mark.parametrize("index", KINDS)
def test_many_answers_beside_one_another(
    models: dict[int, Path], few_places: None, index: int
) -> None:
    model = load(models[index], max_sequences=3)
    prompts = [prompt(30 + 97 * number, number) for number in range(7)]
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    got = model.generate(prompts, params)
    alone = load(models[index], max_sequences=1)
    assert [each.ids for each in got] == [alone.generate(p, params).ids for p in prompts]
    several = SamplingParams(max_tokens=20, temperature=1.0, seed=3, n=4, ignore_eos=True)
    ours = [each.ids for each in model.generate(prompts[3], several)]
    assert ours == [each.ids for each in alone.generate(prompts[3], several)]


@pytest.mark.parametrize("index", KINDS)
def test_guesses_change_nothing(models: dict[int, Path], few_places: None, index: int) -> None:
    """A repeated text, so that looking it up gives guesses, right ones and wrong ones."""
    prompts = [prompt(40, number) * 5 for number in range(3)]
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    plain = [each.ids for each in load(models[index]).generate(prompts, params)]
    for kind in ("ngram", "mtp"):
        model = load(models[index], speculate=kind)
        assert [each.ids for each in model.generate(prompts, params)] == plain


class Now(Fixed):
    """Guesses only where it is told to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.now = False

    def choose(self, offers: List[Offer], most_rows: int) -> list[int]:
        return super().choose(offers, most_rows) if self.now else [0] * len(offers)


def test_pairs_that_wait_for_a_block_have_their_rows(
    tmp_path: Path, few_places: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks of 63 tokens, more than a window of 18 and what a session can be cut by."""
    fields = CONFIGS["deepseek_v4"][0] | {"compress_ratios": None, "num_hidden_layers": 2}
    fields |= {"compress_rates": {SPARSE: 9, HEAVILY: 7}, "layer_types": [SPARSE, HEAVILY]}
    checkpoint_of("deepseek_v4", fields | {"max_position_embeddings": 600}, tmp_path / "hf")
    deepmnn.convert(tmp_path / "hf", tmp_path / "model", "fp32")
    model = load(tmp_path / "model", cache_tokens=6000, speculate="mtp")
    engine, depth = model.engine, Now()
    assert engine.manager.block_size == 63
    assert engine.speculation is not None
    engine.speculation.depth = depth
    params = SamplingParams(max_tokens=260, temperature=0, ignore_eos=True)
    sequence = engine.submit(prompt(20), params)
    for number in range(10_000):
        if sequence.finish_reason:
            break
        depth.now = number % 7 == 3 and sequence.length % 63 > 45
        if len(engine.scheduler.running) + len(engine.scheduler.waiting) < 2:
            engine.submit(prompt(200, number), replace(params, max_tokens=2))
        engine.step()
    assert sequence.drafted_tokens > 0
    assert sequence.error is None
    assert "guessing ahead has failed" not in caplog.text


def test_rows_on_disk_are_warned_of(
    models: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(models[0], kv_disk="64MiB", kv_directory=tmp_path)
    assert model.engine.manager.disk is None
    assert "no rows of this model's KV cache go to disk" in caplog.text
