"""Where an answer ends: by generation_config.json, config.json, the tokenizer and its template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from byte_tokenizer import BOS, EOS, MARKS, PAD, R1_TEMPLATE, write_tokenizer
from deepmnn.conversion.convert import convert
from deepmnn.errors import ConfigError
from deepmnn.text.answer_end import end_ids
from deepmnn.text.generation_config import GenerationConfig
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.tokenizer import Tokenizer
from tiny_models import CONFIGS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CODER = "{% for m in messages %}{{ m.content | trim }}\n<|EOT|>\n{% endfor %}"
SILENT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CUTTING = "{% for m in messages %}{{ m.content[:3] }}<|im_end|>{% endfor %}"
FAILING = "{{ raise_exception('no') }}"


def write(directory: Path, *special: str, **config: Any) -> Tokenizer:
    """The byte tokenizer, with more special tokens."""
    write_tokenizer(directory, extra_special_tokens=list(special), **config)
    return Tokenizer(directory)


def ends(directory: Path, tokenizer: Tokenizer, own: Any = None, config: Any = None) -> set[str]:
    """The texts of the tokens that end an answer."""
    fields = {} if own is None else {"eos_token_id": own}
    (directory / "generation_config.json").write_text(json.dumps(fields))
    generation = GenerationConfig.read(directory, {"eos_token_id": config})
    found = end_ids(tokenizer, generation)
    return {tokenizer.decode([token], skip_special_tokens=False) for token in found}


@pytest.mark.parametrize(
    ("template", "marker"),
    [
        (CHATML, "<|im_end|>"),
        (CODER, "<|EOT|>"),
        (R1_TEMPLATE, EOS),
        (SILENT, None),
        (CUTTING, None),
        (FAILING, None),
        (None, None),
    ],
)
def test_the_templates_end_marker_ends_an_answer(
    tmp_path: Path, template: str | None, marker: str | None
) -> None:
    tokenizer = write(
        tmp_path, "<|im_end|>", "<|EOT|>", "<|im_start|>", chat_template=template, eos_token=None
    )
    assert ends(tmp_path, tokenizer) == ({marker} if marker else set())


def test_a_marker_that_is_no_special_token_is_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}</think>{% endfor %}"
    tokenizer = write(tmp_path, chat_template=template, eos_token=None)
    assert ends(tmp_path, tokenizer) == set()


def test_the_longest_marker_counts(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}<|end|>more{% endfor %}"
    tokenizer = write(tmp_path, "<|end|>", "<|end|>more", chat_template=template, eos_token=None)
    assert ends(tmp_path, tokenizer) == {"<|end|>more"}


def test_all_files_have_a_say(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, "<|im_end|>", "<|im_start|>", chat_template=CHATML)
    marker, eos = "<|im_end|>", EOS
    bos, pad = tokenizer.token_id(BOS), tokenizer.token_id(PAD)
    letter, think = tokenizer.token_id("a"), tokenizer.token_id(MARKS[2])
    assert ends(tmp_path, tokenizer) == {marker, eos}
    assert ends(tmp_path, tokenizer, own=[pad, letter]) == {marker, eos, PAD, "a"}
    assert ends(tmp_path, tokenizer, config=letter) == {marker, eos, "a"}
    # Beside generation_config.json, only a special token counts: others are leftovers.
    assert ends(tmp_path, tokenizer, own=pad, config=[letter, bos, think]) == {
        *(marker, eos, PAD, BOS)
    }


@pytest.mark.parametrize("names", [{}, {"eos_token": 3}, {"chat_template": 3}])
def test_a_models_answers_end_there(tmp_path: Path, names: dict[str, int]) -> None:
    """A model of random weights, whose fourth token is made the end of an answer."""
    write_tokenizer(tmp_path, chat_template=None, eos_token=None)
    config = {"model_type": "llama", **CONFIGS["llama"][0], "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = convert(tmp_path, tmp_path / "free", random_weights=True).path
    params = SamplingParams(max_tokens=8, repetition_penalty=2.0)
    free = deepmnn.load(path, threads=1).generate([5, 6, 7], params).ids
    mark = Tokenizer(tmp_path).library.id_to_token(free[3])
    assert free.index(free[3]) == 3, "the test needs a token that comes once"
    assert len(free) == 8
    values = {"eos_token": mark, "chat_template": "{{ messages[-1].content }}" + str(mark)}
    settings = {name: values[name] for name in names}
    write_tokenizer(
        tmp_path, **({"eos_token": None} | settings), extra_special_tokens=[mark] if names else []
    )
    path = convert(tmp_path, tmp_path / "ends", random_weights=True).path
    answer = deepmnn.load(path, threads=1).generate([5, 6, 7], params)
    assert answer.ids == (free[:4] if names else free)
    assert answer.finish_reason == ("stop" if names else "length")


@pytest.mark.parametrize("odd", [-1, None, [], [None, -1], [-100]])
def test_odd_ids_say_nothing(tmp_path: Path, odd: Any) -> None:
    tokenizer = write(tmp_path, chat_template=None, eos_token=None)
    assert ends(tmp_path, tokenizer, own=odd, config=odd) == set()
    assert ends(tmp_path, tokenizer, own=odd, config=1) == {EOS}


def test_ids_outside_the_vocabulary_do_no_harm(tmp_path: Path) -> None:
    tokenizer = write(tmp_path, chat_template=None)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1 << 70, 1]}))
    generation = GenerationConfig.read(tmp_path, {"eos_token_id": 1 << 40})
    assert end_ids(tokenizer, generation) == {1 << 70, 1}, "no token has the first of them"


@pytest.mark.parametrize("value", [True, "2", 2.0, [1, "2"], {"id": 2}, [[1]]])
@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_what_is_no_id_is_refused_by_name(tmp_path: Path, value: Any, place: str) -> None:
    own, config = (value, 1) if place == "generation_config.json" else (1, value)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    with pytest.raises(ConfigError, match=rf"eos_token_id in .*{place}"):
        GenerationConfig.read(tmp_path, {"eos_token_id": config})
