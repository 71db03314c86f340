"""Tokenizers as GGUF's keys: which pre-tokenizer, which tokens, which ids begin and end a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from byte_tokenizer import BOS, EOS, MARKS, PAD, write_tokenizer
from deepmnn.errors import TokenizerError
from deepmnn.exporters.gguf.pre_tokenizer import TEXTS, find_pre
from deepmnn.exporters.gguf.tokenizer import vocabulary
from deepmnn.text.tokenizer import Tokenizer
from exporters.folders import change_json

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)

PUBLISHED = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "dbrx": [WORDS + r"|\p{N}{1,3}" + REST],  # llama3's, but for what merges it ignores
    "qwen2": [WORDS + r"|\p{N}" + REST],
    "deepseek-v3": [r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", V3],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
}
"""What the tokenizer.json of published models has before ByteLevel."""


def trained(steps: list[Any], **options: Any) -> tokenizers.Tokenizer:
    """Byte-pair encoding learned from TEXTS behind these cuts."""
    library = tokenizers.Tokenizer(models.BPE(**options))
    cuts = [
        pre_tokenizers.Split(tokenizers.Regex(step), "isolated") if isinstance(step, str) else step
        for step in steps
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not any(map(is_text, steps)))
    library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(TEXTS * 3, trainer)
    return library


def is_text(step: Any) -> bool:
    return isinstance(step, str)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pre_tokenizer_is_found_by_what_it_does(name: str) -> None:
    pre, wrong = find_pre(trained(PUBLISHED[name]))
    assert (pre, wrong) == (name, 0)


def test_merges_that_are_ignored() -> None:
    library = trained(PUBLISHED["dbrx"])
    spec = json.loads(library.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][:150]  # longer tokens come by themselves
    spec["model"]["ignore_merges"] = True
    pre, wrong = find_pre(tokenizers.Tokenizer.from_str(json.dumps(spec)))
    assert (pre, wrong) == ("llama-bpe", 0)


def test_a_tokenizer_that_cuts_as_no_other(tmp_path: Path) -> None:
    library = trained([r" ?\p{L}+ ?| ?[^\s\p{L}]+[ \r\n]*|\s+"])
    library.save(str(tmp_path / "tokenizer.json"))
    made = vocabulary(Tokenizer(tmp_path), 900, {}, frozenset())
    assert made.fields["ggml.pre"] in {"gpt-2", "smollm", "qwen2", "dbrx", "deepseek-v3"}
    (note,) = made.notes
    assert "is nearest, and gives other token ids on" in note


def test_tokens_and_types(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, add_bos_token=True)
    tokenizer = Tokenizer(tmp_path)
    fields = vocabulary(tokenizer, 270, {}, frozenset({1, 2})).fields
    tokens, types = fields["ggml.tokens"], fields["ggml.token_type"]
    assert len(tokens) == len(types) == 270
    for text in (BOS, EOS, PAD, *MARKS, "Ġ", "a"):
        assert tokens[tokenizer.token_id(text)] == text
    assert types[:3] == [3, 3, 3]
    assert types[3:259] == [1] * 256
    assert [types[tokenizer.token_id(mark)] for mark in MARKS] == [3, 3, 4, 4]
    assert tokens[-7:] == [f"[PAD{n}]" for n in range(263, 270)]
    assert types[-7:] == [5] * 7
    expected = {"bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 2, "eot_token_id": 2}
    expected |= {"add_bos_token": True, "add_eos_token": False, "model": "gpt2"}
    assert {key: fields[f"ggml.{key}"] for key in expected} == expected
    assert fields["chat_template"] == tokenizer.chat_template


def sentencepiece(path: Path) -> Tokenizer:
    """Byte-pair encoding that falls back to bytes, as Llama 2 has it."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    made = ["▁", "t", "h", "e", "▁t", "he", "▁the", "n", "▁then"]
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *pieces, *made])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁the", "n")]
    library = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    prepend = tokenizers.normalizers.Prepend("▁")
    replace = tokenizers.normalizers.Replace(" ", "▁")
    library.normalizer = tokenizers.normalizers.Sequence([prepend, replace])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    path.mkdir(exist_ok=True)
    library.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(path)


def test_sentencepiece(tmp_path: Path) -> None:
    """Of two pairs llama.cpp joins the one whose token scores higher: that of the earlier merge."""
    tokenizer = sentencepiece(tmp_path)
    made = vocabulary(tokenizer, 270, {}, frozenset({2}))
    fields = made.fields
    assert (fields["ggml.model"], fields["ggml.pre"]) == ("llama", "default")
    scores = dict(zip(fields["ggml.tokens"], fields["ggml.scores"], strict=True))
    assert scores["▁t"] > scores["he"] > scores["▁the"] > scores["▁then"]
    types = dict(zip(fields["ggml.tokens"], fields["ggml.token_type"], strict=True))
    assert [types[t] for t in ("<unk>", "<s>", "<0x41>", "he", "[PAD269]")] == [2, 3, 6, 1, 5]
    assert fields["ggml.add_space_prefix"] is True
    assert not made.notes
    assert fields["ggml.add_bos_token"] is True


def test_pairs_that_only_llama_cpp_joins(tmp_path: Path) -> None:
    """he is a token, so llama.cpp joins h and e; here no merge does."""
    sentencepiece(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = [merge for merge in spec["model"]["merges"] if merge not in ("h e", ["h", "e"])]
    change_json(tmp_path / "tokenizer.json", model={**spec["model"], "merges": merges})
    (note,) = vocabulary(Tokenizer(tmp_path), 280, {}, frozenset()).notes
    assert "llama.cpp joins pieces that this model's merges do not" in note


def test_no_tokenizer() -> None:
    made = vocabulary(None, 100, {}, frozenset())
    assert made.fields == {"ggml.model": "none"}
    assert "no tokenizer" in made.notes[0]


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ({"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0}, "Unigram"),
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "WordLevel"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}, "affixes"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, "neither byte-level"),
    ],
)
def test_what_gguf_has_no_form_for(model: dict[str, Any], what: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    change_json(
        tmp_path / "tokenizer.json", model=model, pre_tokenizer=None, added_tokens=[], decoder=None
    )
    with pytest.raises(TokenizerError, match=what) as error:
        vocabulary(Tokenizer(tmp_path), 300, {}, frozenset())
    assert error.value.hint


def test_a_tokenizer_of_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="ids below vocab_size, 200"):
        vocabulary(Tokenizer(tmp_path), 200, {}, frozenset())
