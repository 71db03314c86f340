"""What tokenizer.json may hold: published files pass, and what the library dies of is refused."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from byte_tokenizer import write_tokenizer
from deepmnn.errors import TokenizerError
from deepmnn.text.pattern_check import check_pattern
from deepmnn.text.tokenizer import Tokenizer

LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PREFIX = r"[^\r\n\p{L}\p{N}]?"
OTHER = r" ?[^\s\p{L}\p{N}]+"
PUBLISHED = [
    # GPT-2, Llama 3, Qwen 2, GPT-4o, Kimi K2, BLOOM, T5, CLIP
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{OTHER}|\s+(?!\S)|\s+",
    rf"{LETTERS}|{PREFIX}\p{{L}}+|\p{{N}}{{1,3}}|{OTHER}[\r\n]*|{SPACES}",
    rf"{LETTERS}|{PREFIX}\p{{L}}+|\p{{N}}|{OTHER}[\r\n]*|{SPACES}",
    rf"{PREFIX}{UPPER}*{LOWER}+{LETTERS}?|{PREFIX}{UPPER}+{LOWER}*{LETTERS}?"
    rf"|\p{{N}}{{1,3}}|{OTHER}[\r\n/]*|{SPACES}",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{M}&&[^\p{Han}]]*|\p{N}{1,3}",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r" {2,}",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    # DeepSeek LLM, Coder, V3
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[一-龥ࠀ-一가-퟿]+",
    r"\s+$",
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
    # tiktoken's newer form, with possessive quantifiers
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
]


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_pass(pattern: str) -> None:
    assert check_pattern(pattern) >= 1
    tokenizers.Regex(pattern)  # it is one


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+$", "(a|a)*$", "(a*)*b", "(?:a|aa)+b", "a**b", "(?:a+b)+|a+c", "(?:(?:a+)b)+c"),
        *(
            r"\s*\s*x",
            r"\S*x",
            r"b*[x]|b|b+",
            r"b+?x|b+",
            r"a??b*+b+",
            ".*.*.*=",
            "(?=.*x)y",
            r"x+(?=x*y)",
        ),
        *("a?" * 25 + "a" * 25, "(?:a|b|c)" * 8 + "x", "a{0,100}b"),
        *("((a{999}){999}){999}", "a{2000}", "a{999}" * 100, "(" * 50 + ")" * 50, "[" * 50),
        *(r"(a)\1", r"(?<n>a)\g<n>", r"(?<n>a)\k<n>", r"\Rx", r"\Xx", r"a\K", r"\Ga"),
        *("(?x: a )", "(?~ab)", "(?(1)a|b)", "(*FAIL)", "(?{1})", "[", "[]", "(", ")", "\\", "*"),
        "a" * 30_000,
    ],
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(TokenizerError, match="pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(PUBLISHED[0], " "), (PUBLISHED[1], "\n "), (PUBLISHED[3], "A"), (PUBLISHED[-2], "!a")],
)
def test_what_passes_takes_a_time_that_grows_with_the_text(pattern: str, text: str) -> None:
    """In a child: a square of this length is minutes."""
    code = (
        "import sys, tokenizers\nfrom tokenizers import pre_tokenizers\n"
        "split = pre_tokenizers.Split(tokenizers.Regex(sys.argv[1]), 'isolated')\n"
        "split.pre_tokenize_str(sys.argv[2] * 200_000)\n"
    )
    subprocess.run([sys.executable, "-c", code, pattern, text], check=True, timeout=120)


def refused(tmp_path: Path, **fields: Any) -> str:
    """The message about a tokenizer.json with other fields, of which `model` is merged."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["model"] |= fields.pop("model", {})
    path.write_text(json.dumps(spec | fields))
    with pytest.raises(TokenizerError) as caught:
        Tokenizer(tmp_path)
    return str(caught.value)


def sequence(inner: str, *parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", inner: list(parts)}


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = sequence("normalizers", part)
    return part


def longer(times: int) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * times}


@pytest.mark.parametrize(
    "model",
    [
        {"continuing_subword_prefix": "é"},
        {"continuing_subword_prefix": "##"},
        {"dropout": 0.1},
        {"dropout": True},
        {"vocab": {"a": 1 << 32}},
        {"vocab": {"a": -1}},
        {"vocab": {"a": True}},
        {"vocab": ["a"]},
        {"merges": [["!", "missing"]]},
        {"merges": [["!", '"']]},
        {"merges": ["! "]},
        {"merges": ["a b c"]},
        {"merges": [[1, 2]]},
        {"merges": 3},
        {"fuse_unk": "false"},
        {"unk_token": 3},
        {"type": "Markov"},
        {"type": ["BPE"]},
        {"type": "Unigram", "vocab": [["a", float("nan")]]},
        {"type": "Unigram", "vocab": [["a", 1e300]]},
        {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 1},
        {"type": "Unigram", "vocab": [["", -1.0]], "unk_id": 0},
        {"type": "WordPiece", "max_input_chars_per_word": 10**9},
    ],
    ids=str,
)
def test_models_out_of_range_are_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    assert "model" in refused(tmp_path, model=model)


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": sequence("normalizers", *[longer(10)] * 9)},
        {"normalizer": sequence("normalizers", *[{"type": "NFKD"}] * 3)},
        {"normalizer": sequence("normalizers", *[{"type": "NFC"}] * 65)},
        {"normalizer": nested(20)},
        {"normalizer": nested(300)},
        {"normalizer": sequence("normalizers", None)},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 300}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "a"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 1000}},
        {"normalizer": {"type": "Unheard"}},
        {"normalizer": {"normalizers": []}},
        {"normalizer": "NFC"},
        {"normalizer": {"type": "Replace"}},
        {"pre_tokenizer": sequence("pretokenizers", *[{"type": "ByteLevel"}] * 9)},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": "a", "Regex": "a"}}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Eaten"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}},
        {"pre_tokenizer": {"type": "ByteLevel", "use_regex": "true"}},
        {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 5}},
        {"decoder": sequence("decoders", *[longer(10)] * 3)},
        {"post_processor": {"type": "BertProcessing", "sep": ["a", -1], "cls": ["b", 2]}},
        {"post_processor": {"type": "TemplateProcessing", "single": []}},
        {"added_tokens": {}},
        {"added_tokens": [5]},
        {"added_tokens": [{"id": 1 << 32, "content": "a"}]},
        {"added_tokens": [{"id": 1, "content": "a" * 200_000}]},
        {"added_tokens": [{"id": 1, "content": "a", "special": "yes"}]},
        {"version": "2.0"},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_parts_out_of_range_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert str(tmp_path) in refused(tmp_path, **fields) or "pattern" in str(fields)


def test_a_template_holds_the_text_once_and_knows_its_tokens(tmp_path: Path) -> None:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    pair = [text, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    for single, known in (
        ([text, text], tokens),
        ([special], tokens),
        ([text] + [special] * 40, tokens),
        ([special, text], {}),
        ([special, text], {"<s>": {"id": "<s>", "ids": [1] * 17, "tokens": ["<s>"] * 17}}),
        ([special, text], {"<s>": {"id": "<s>", "ids": [1, 2], "tokens": ["<s>"]}}),
        ([special, text], {"<s>": {"id": "<s>", "ids": [-1], "tokens": ["<s>"]}}),
    ):
        processor = {"type": "TemplateProcessing", "single": single, "pair": pair}
        refused(tmp_path, post_processor={**processor, "special_tokens": known})


PANICKING = {
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAAECAwQFBgcIYWIAYwA="},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
}


def test_a_panic_of_the_library_is_a_typed_error(tmp_path: Path) -> None:
    """A panic is no Exception; this one is a table whose numbers lead out of it."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | PANICKING))
    tokenizer = Tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="index out of bounds"):
        tokenizer.encode("text")


def test_a_long_text_grows_no_further_than_the_bound(tmp_path: Path) -> None:
    """In a child with little memory: nine tenfold parts would make 40 GB of 40 letters."""
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["normalizer"] = sequence("normalizers", longer(9), longer(9))
    path.write_text(json.dumps(spec))
    code = (
        "import sys\nfrom deepmnn.text.tokenizer import Tokenizer\n"
        "print(len(Tokenizer(sys.argv[1]).encode('1+1 ' * 10, add_special_tokens=False)))\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )
    assert int(child.stdout) == 40 * 81
