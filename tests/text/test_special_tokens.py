"""Special tokens of generated settings, against transformers: the same ids, the same text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from deepmnn.errors import TokenizerError
from deepmnn.text.special_tokens import NAMES
from deepmnn.text.tokenizer import Tokenizer

MARKS = ["<|im_end|>", "<|eot|>", "<tool>", "<think>", "mask", "<image>"]
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
PIECES = [*MARKS, "a", " ", "  ", "B", "masked", "\n", "é"]


def write_base(directory: Path, rng: random.Random) -> int:
    """tokenizer.json: bytes, and some of the MARKS as ordinary, added or special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inside = [mark for mark in MARKS if rng.random() < 0.2]
    vocab = {token: index for index, token in enumerate([*alphabet, *inside])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    if rng.random() < 0.5:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for mark in MARKS:
        if rng.random() < 0.3:
            tokenizer.add_tokens([added_token(mark, rng)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def flags(rng: random.Random) -> dict[str, bool]:
    return {flag: rng.random() < 0.3 for flag in FLAGS}


def added_token(content: str, rng: random.Random) -> AddedToken:
    return AddedToken(content, **flags(rng))


def settings(rng: random.Random, size: int, known: dict[str, int]) -> dict[str, dict[str, Any]]:
    """tokenizer_config.json, special_tokens_map.json and added_tokens.json, of any of them some."""

    def named(token_type: bool) -> Any:
        mark = rng.choice(MARKS)
        if rng.random() < 0.6:
            return mark
        kind = {"__type": "AddedToken"} if token_type else {}
        return {"content": mark, **flags(rng), **kind}

    def names(token_type: bool) -> dict[str, Any]:
        found = {name: named(token_type) for name in NAMES if rng.random() < 0.25}
        if rng.random() < 0.2:
            found["image_token"] = rng.choice(MARKS)
        return found

    def pick() -> list[str]:
        return rng.sample(MARKS, rng.randint(0, 3))

    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names(True)}
    if rng.random() < 0.3:
        config[rng.choice(["additional_special_tokens", "extra_special_tokens"])] = pick()
    elif rng.random() < 0.2:
        config["extra_special_tokens"] = {f"mark_{i}": mark for i, mark in enumerate(pick())}
    new = [mark for mark in pick() if mark not in known]
    ids = {mark: size + place for place, mark in enumerate(new)} | {
        mark: known[mark] for mark in pick() if mark in known
    }
    files = {"tokenizer_config.json": config}
    if rng.random() < 0.5:
        listed = {str(i): {"content": mark, **flags(rng)} for mark, i in ids.items()}
        config["added_tokens_decoder"] = listed
    elif rng.random() < 0.5:
        files["added_tokens.json"] = ids
    if rng.random() < 0.4:
        files["special_tokens_map.json"] = names(False)
    return files


@pytest.mark.parametrize("seed", range(8))
def test_special_tokens_are_those_of_transformers(tmp_path: Path, seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    rng = random.Random(seed)
    for case in range(40):
        directory = tmp_path / str(case)
        directory.mkdir()
        size = write_base(directory, rng)
        base = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        known = {mark: i for mark in MARKS if (i := base.token_to_id(mark)) is not None}
        files = settings(rng, size, known)
        for name, fields in files.items():
            (directory / name).write_text(json.dumps(fields))
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        ours = Tokenizer(directory)
        assert ours.special_tokens == theirs.special_tokens_map, files
        for _ in range(10):
            text = "".join(rng.choices(PIECES, k=rng.randint(1, 8)))
            ids = theirs.encode(text)
            assert ours.encode(text) == ids, (files, text)
            for skip in (True, False):
                wanted = theirs.decode(ids, skip_special_tokens=skip)
                assert ours.decode(ids, skip_special_tokens=skip) == wanted, (files, text)


def test_a_flag_that_splits_special_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_base(tmp_path, random.Random(1))
    for split in (True, False):
        fields = {"eos_token": "<|eot|>", "split_special_tokens": split}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        text = "a<|eot|>b"
        assert Tokenizer(tmp_path).encode(text) == theirs.encode(text)


@pytest.mark.parametrize("settings_of_training", [True, False])
def test_a_prompt_is_neither_cut_nor_padded(tmp_path: Path, settings_of_training: bool) -> None:
    """Even when they are such that the library would not load them."""
    write_base(tmp_path, random.Random(1))
    path = tmp_path / "tokenizer.json"
    wanted = Tokenizer(tmp_path).encode("a long prompt")
    fields = json.loads(path.read_text())
    fields["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0 if settings_of_training else 9,
    }
    fields["padding"] = {
        "strategy": {"Fixed": 64 if settings_of_training else 2_000_000_000},
        "direction": "Left",
        "pad_to_multiple_of": 8,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    path.write_text(json.dumps(fields))
    assert Tokenizer(tmp_path).encode("a long prompt") == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"added_tokens_decoder": {"900": {"content": "<new>", "special": True}}},
        {"added_tokens_decoder": {"x": {"content": "<new>"}}},
        {"added_tokens_decoder": {"-1": {"content": "<new>"}}},
        {"added_tokens_decoder": {"9999999999": {"content": "<new>"}}},
        {"added_tokens_decoder": {"900": "<new>"}},
        {"added_tokens_decoder": {"900": {"content": 5}}},
        {"added_tokens_decoder": {"900": {"content": "<new>", "special": "true"}}},
        {"added_tokens_decoder": {"900": {"special": True}}},
        {"added_tokens_decoder": []},
        {"eos_token": ["<new>"]},
        {"eos_token": {"content": "<new>", "lstrip": "no"}},
        {"eos_token": "\ud800"},
        {"extra_special_tokens": "<new>"},
        {"extra_special_tokens": [5]},
        {"extra_special_tokens": {"x": 5}},
        {"add_bos_token": "false"},
        {"split_special_tokens": 1},
    ],
    ids=str,
)
def test_malformed_settings_are_typed_errors(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_base(tmp_path, random.Random(1))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(TokenizerError):
        Tokenizer(tmp_path)


def test_a_new_token_never_takes_the_id_of_another(tmp_path: Path) -> None:
    """The library counts tokens, and forgets that a vocabulary may have gaps."""
    vocab = {"a": 0, "b": 2}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(TokenizerError, match="one that no token has"):
        Tokenizer(tmp_path)
