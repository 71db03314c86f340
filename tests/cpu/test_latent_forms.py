"""Absorbed and expanded, latent attention is one model: a trained one, in every recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import deepmnn
from deepmnn import LLM, SamplingParams
from deepmnn.conversion.bundled import CHECKPOINT
from deepmnn.conversion.convert import convert
from deepmnn.quant.divergence import divergence
from deepmnn.quant.recipe import RECIPES

QUESTIONS = 40
FORMS = ("absorbed", "expanded")

Converted = Callable[[str], Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """recipe → tiny-r1 in it, rounded to nearest, made once."""
    made: dict[str, Path] = {}

    def make(quant: str) -> Path:
        if quant not in made:
            out = tmp_path_factory.mktemp("model") / quant
            made[quant] = convert(CHECKPOINT, out, quant, calibration=False).path
        return made[quant]

    return make


def questions(count: int) -> list[str]:
    lines = (CHECKPOINT / "held_out.jsonl").read_text().splitlines()[:count]
    return [json.loads(line)["question"] for line in lines]


def asked(model: LLM, count: int) -> list[list[int]]:
    return [model.encode([{"role": "user", "content": text}]) for text in questions(count)]


def answers(model: LLM, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [answer.ids for answer in model.generate(prompts, SamplingParams(max_tokens=60))]


@pytest.fixture(scope="module")
def texts(converted: Converted) -> list[list[int]]:
    """Questions and what float32 answers."""
    exact = deepmnn.load(converted("fp32"), threads=1)
    prompts = asked(exact, QUESTIONS)
    return [p + a for p, a in zip(prompts, answers(exact, prompts), strict=True)]


def logits(path: Path, texts: list[list[int]], **options: str) -> np.ndarray:
    model = deepmnn.load(path, threads=1, **options)
    return np.concatenate([model.logits(ids) for ids in texts])


@pytest.mark.parametrize("quant", RECIPES)
def test_both_forms_differ_by_less_than_a_tenth_of_rounding(
    converted: Converted, texts: list[list[int]], quant: str
) -> None:
    absorbed, expanded = (logits(converted(quant), texts, mla_form=form) for form in FORMS)
    between = divergence(absorbed, expanded).mean()
    if quant in ("fp32", "bf16"):  # the checkpoint's own numbers: there is no rounding
        assert between < 1e-9
        return
    rounding = divergence(logits(converted("fp32"), texts, mla_form="expanded"), expanded).mean()
    assert between < rounding / 10


@pytest.mark.parametrize("quant", RECIPES)
def test_answers_do_not_depend_on_form_batch_or_chunk(converted: Converted, quant: str) -> None:
    wanted = None
    for form in ("auto", *FORMS):
        for step in (512, 5):
            model = deepmnn.load(converted(quant), threads=1, mla_form=form, max_batch_tokens=step)
            prompts = asked(model, 16)
            together = answers(model, prompts)
            wanted = wanted or together
            assert together == wanted, (form, step)
            assert [answers(model, [prompt])[0] for prompt in prompts[:4]] == wanted[:4]
