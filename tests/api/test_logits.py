"""What the model computes: by all backends, in one go, token by token, from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn import LLM, SamplingParams
from deepmnn.backends.base import F32
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from tiny_llm import IDS, close, load


def test_backends_agree(artifact: Path) -> None:
    close(
        deepmnn.load(artifact, "cpu").logits(IDS), deepmnn.load(artifact, "reference").logits(IDS)
    )


def test_logits_in_chunks_or_whole_or_by_session(model: LLM, artifact: Path, backend: str) -> None:
    logits = model.logits(IDS)
    assert logits.shape == (len(IDS), model.vocab_size)
    assert logits.dtype == np.float32
    whole = load(artifact, backend, max_batch_tokens=512).logits(IDS)
    close(logits, whole)
    with model.session() as session:
        close(session.prefill(IDS[:7]), logits[6])
        for index in range(7, len(IDS)):
            close(session.decode(IDS[index]), logits[index])
        assert session.length == len(IDS)
        session.rollback(5)
        close(session.prefill(IDS[5:]), logits[-1])


def test_a_guess_of_several_tokens_gets_the_rows_of_one_by_one(model: LLM) -> None:
    guess = model.generate(IDS, SamplingParams(max_tokens=5, ignore_eos=True)).ids
    with model.session() as session:
        wanted = [session.prefill(IDS), *(session.decode(token) for token in guess)]

    def verify(engine: Engine) -> F32:
        table = BlockTable(list(IDS))
        engine.run_pending([table])
        table.ids += guess
        engine.manager.append(table, len(guess))
        try:
            return engine.forward([Span(table, len(guess), rows=len(guess))])
        finally:
            engine.manager.free(table)

    rows = model.driver.run(verify)
    close(rows, np.stack(wanted[1:]))
    assert rows[:-1].argmax(-1).tolist() == guess[1:]


def test_rollback_equals_a_fresh_prefill(model: LLM) -> None:
    with model.session() as rolled, model.session() as fresh:
        rolled.prefill(IDS * 6)
        rolled.rollback(40)
        close(rolled.decode(3), fresh.prefill([*(IDS * 6)[:40], 3]))


def test_a_shared_prefix_gives_the_same_logits(model: LLM) -> None:
    ids = IDS * 8
    with model.session() as first, model.session(share_prefix=True) as second:
        wanted = first.prefill(ids)
        before = model.engine.manager.free_blocks
        close(second.prefill(ids), wanted)
        assert before - model.engine.manager.free_blocks < len(ids) // 32
        close(second.decode(7), first.decode(7))


def test_a_dropped_session_frees_its_blocks(model: LLM) -> None:
    free = model.engine.manager.free_blocks
    session = model.session()
    session.prefill(IDS)
    assert model.engine.manager.free_blocks < free
    del session
    assert model.engine.manager.free_blocks == free


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_both_forms_of_latent_attention_give_the_same(artifact: Path, backend: str) -> None:
    expanded, absorbed = (
        deepmnn.load(artifact, backend, mla_form=form).logits(IDS)
        for form in ("expanded", "absorbed")
    )
    close(absorbed, expanded)
    assert (absorbed != expanded).any(), "they round differently"


def test_bf16_cache_is_close(artifact: Path) -> None:
    wanted = deepmnn.load(artifact, "reference").logits(IDS)
    for backend in ("reference", "cpu"):
        model = deepmnn.load(artifact, backend, kv_dtype="bf16")
        got = model.logits(IDS)
        assert model.kv_bytes_per_token == 2 * 2 * (18 + 6)
        assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_int8_cache_is_close(artifact: Path) -> None:
    wanted = deepmnn.load(artifact, "reference").logits(IDS)
    for backend in ("reference", "cpu"):
        model = deepmnn.load(artifact, backend, kv_dtype="int8")
        got = model.logits(IDS)
        assert model.kv_bytes_per_token == 51
        assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
