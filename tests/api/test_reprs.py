"""What models, answers and requests look like at a prompt: short, useful, on one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import deepmnn
from deepmnn import LLM, SamplingParams
from tiny_llm import CHAT, load
from tiny_models import tiny_checkpoint


def test_a_model_says_what_it_is_and_what_runs_it(model: LLM, backend: str) -> None:
    assert len(repr(model)) < 220
    assert repr(model).startswith("LLM('model', model_type='deepseek_v3', ")
    assert f"recipe='fp32', backend='{backend}', " in repr(model)
    assert repr(model).endswith("context_length=192)")
    assert ("isa='" in repr(model)) == (backend == "cpu")


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek", "qwen2", "llama"])
def test_it_counts_the_parameters_as_transformers_does(model_type: str, tmp_path: Path) -> None:
    tiny = tiny_checkpoint(model_type, 0, tmp_path / "source")
    deepmnn.convert(tmp_path / "source", tmp_path / "model", "w8")
    model = load(tmp_path / "model", "cpu", threads=1)
    buffers = sum(
        buffer.numel() for name, buffer in tiny.model.named_buffers() if "correction_bias" in name
    )
    wanted = sum(parameter.numel() for parameter in tiny.model.parameters()) + buffers
    assert model.parameters == wanted
    assert f"parameters={wanted / 1e6:.3g}M, recipe='w8'" in repr(model)


def test_answers_are_cut(model: LLM) -> None:
    params = SamplingParams(max_tokens=90, ignore_eos=True, n=2, temperature=1.0, seed=1)
    answers = [model.generate("go on", SamplingParams(max_tokens=1)), model.generate(CHAT)]
    chunks = [*model.stream("go on", params), *model.stream("go on", params, whole=True)]
    for shown in map(repr, (*answers, *chunks)):
        assert len(shown) < 500
        assert shown.isprintable()
    assert re.fullmatch(r"Completion\(text='.*', 1 token, length\)", repr(answers[0]))
    assert "reasoning=" in repr(answers[1])
    assert repr(chunks[-1]).startswith(("Chunk(0: text=", "Chunk(0, choice 1: text="))
    assert "90 tokens, length" in repr(chunks[-1])
    assert "1 token, unfinished" in repr(chunks[0])


def test_a_session_counts_its_tokens(model: LLM) -> None:
    session = model.session()
    session.prefill([1, 2, 3])
    assert repr(session) == "Session(3 of 192 tokens)"
    session.close()
    assert repr(session) == "Session(3 of 192 tokens, closed)"


def test_params_show_what_was_chosen() -> None:
    for params in (
        SamplingParams(),
        SamplingParams(0.6, top_p=0.95, stop="x", seed=2**70, n=3, logprobs=0),
        SamplingParams(ignore_eos=True, max_tokens=5),
    ):
        assert eval(repr(params)) == params
    assert repr(SamplingParams(temperature=1)) == "SamplingParams(temperature=1.0)"
