"""Histories of right and wrong guesses leave the caches of every architecture as they would be.

A step computes up to 16 tokens of a sequence as if each came alone: logits are the same to the bit.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from deepmnn.backends.base import F32, Backend
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.conversion.convert import convert
from deepmnn.engine.engine import Engine
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.scheduler import Span
from deepmnn.engine.sequence import Sequence
from deepmnn.graph.caches import block_multiple
from deepmnn.text.sampling_params import SamplingParams
from guessing import RandomDepth, ScriptedDrafter, guess_ahead
from tiny_models import CONFIGS, tiny_checkpoint

HISTORIES = 10_000


@pytest.fixture(scope="module", params=[(m, q) for m in sorted(CONFIGS) for q in ("fp32", "w8")])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, quant = request.param
    directory = tmp_path_factory.mktemp(name)
    tiny_checkpoint(name, len(CONFIGS[name]) - 1, directory / "source")
    convert(directory / "source", directory / "model", quant=quant)
    return directory / "model"


def plain_logits(backend: Backend, ids: list[int], prompt: int) -> F32:
    """[len(ids) - prompt + 1, vocab_size], one row at a time."""
    engine = Engine(backend, 256, 256)
    table = BlockTable(ids[:prompt])
    engine.run_pending([table])
    engine.manager.rollback(table, prompt - 1)
    rows = []
    for end in range(prompt, len(ids) + 1):
        table.ids = ids[:end]
        engine.manager.append(table, 1)
        rows.append(engine.forward([Span(table, 1, 1)])[0])
    return np.stack(rows)


@pytest.mark.parametrize("form", ["absorbed", "expanded", "auto"])
def test_logits_after_any_history(converted: Path, form: str) -> None:
    """Rows of wrong guesses are written, dropped and written again, over block borders."""
    backend = CpuBackend(converted, 1, mla_form=form)
    rng = random.Random(3)
    vocab, prompt, length = backend.vocab_size, 9, 90
    ids = [rng.randrange(vocab) for _ in range(length)]
    expected = plain_logits(backend, ids, prompt)
    multiple = block_multiple(backend.caches)
    engine = Engine(backend, 512, 256, block_size=multiple * math.ceil(16 / multiple))
    histories = 0
    while histories < HISTORIES // (3 * len(CONFIGS)):
        table = BlockTable(ids[:prompt])
        engine.run_pending([table])
        engine.manager.rollback(table, prompt - 1)
        while len(table.ids) < length:
            right = rng.randint(0, min(8, length - len(table.ids)))
            guesses = ids[len(table.ids) : len(table.ids) + right]
            guesses += [rng.randrange(vocab) for _ in range(rng.randint(0, 8 - right))]
            engine.manager.append(table, 1 + len(guesses))
            span = Span(table, 1 + len(guesses), 1 + len(guesses), guesses)
            logits = engine.forward([span])
            begin = len(table.ids) - prompt
            known = logits[: min(right + 1, len(expected) - begin)]
            want = expected[begin : begin + len(known)]
            if form == "expanded" and "index" in " ".join(backend.caches):
                # several rows share the keys that are rebuilt for them, in other sums than one's
                np.testing.assert_allclose(known, want, atol=1e-5 * float(np.abs(want).max()))
            else:
                np.testing.assert_array_equal(known, want)
            table.ids += ids[len(table.ids) : len(table.ids) + right + 1]
            engine.manager.commit(table, len(table.ids) - 1 - table.length)
            engine.manager.rollback(table, table.length)
            histories += 1
        engine.manager.free(table)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_answers_of_real_engines(converted: Path, batch: int) -> None:
    """Greedy and sampled, of different lengths, prompts in chunks."""
    backend = CpuBackend(converted, 2)
    rng = random.Random(batch)
    asked = [
        (
            [rng.randrange(backend.vocab_size) for _ in range(rng.randint(1, 60))],
            SamplingParams(
                temperature=rng.choice([0.0, 1.0]),
                seed=n,
                max_tokens=rng.randint(20, 40),
                repetition_penalty=rng.choice([1.0, 1.2]),
                logprobs=2,
            ),
        )
        for n in range(batch)
    ]
    plain = Engine(backend, 4096, 256, max_batch_tokens=48)
    expected = [plain.submit(ids, params) for ids, params in asked]
    while plain.scheduler.busy:
        plain.step()
    known = {tuple(s.ids[: s.prompt_tokens]): s.answer for s in expected}

    def truth(sequence: Sequence) -> list[int]:
        return known[tuple(sequence.ids[: sequence.prompt_tokens])]

    engine = Engine(backend, 4096, 256, max_batch_tokens=48)
    guess_ahead(engine, ScriptedDrafter(truth, 0.7, backend.vocab_size), depth=RandomDepth(1))
    made = [engine.submit(ids, params) for ids, params in asked]
    while engine.scheduler.busy:
        engine.step()
    for one, other in zip(made, expected, strict=True):
        assert one.answer == other.answer
        assert one.logprobs == other.logprobs
    assert sum(sequence.accepted_tokens for sequence in made) > 0
