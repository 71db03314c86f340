"""Calibration samples: the set that comes with deepmnn, users' files, and what a model reads."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from deepmnn.errors import RequestError
from deepmnn.text.samples import (
    COUNT,
    LONGEST_SAMPLE,
    MOST_CHARACTERS,
    Sample,
    built_in,
    read_samples,
    sample_ids,
)
from deepmnn.text.tokenizer import Tokenizer

TINY_R1 = Path(__file__).parents[2] / "src" / "deepmnn" / "tiny_r1"
SHARES = {"english": 0.45, "code": 0.25, "chinese": 0.15, "reasoning": 0.15}


def whole(sample: Sample) -> str:
    return sample.text + "\n".join(message["content"] for message in sample.messages)


@pytest.mark.parametrize("count", [40, 100, COUNT])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_beginning_of_the_built_in_set_is_a_fair_mixture(count: int, seed: int) -> None:
    found = built_in(count, seed)
    kinds = Counter(sample.kind for sample in found)
    assert kinds.keys() == SHARES.keys()
    for kind, share in SHARES.items():
        assert abs(kinds[kind] - share * count) <= 3, kind


def test_built_in_samples_are_whole_and_different() -> None:
    found = built_in()
    assert len(found) == COUNT == len({whole(sample) for sample in found})
    assert all(bool(sample.text) != bool(sample.messages) for sample in found)
    assert all(150 <= len(whole(sample)) <= 4000 for sample in found)
    assert sum("<think>" in whole(sample) for sample in found) > 60


def test_a_seed_chooses_the_order() -> None:
    assert built_in(50, 3) == built_in(50, 3) == built_in(COUNT, 3)[:50]
    assert built_in(50, 3) != built_in(50, 4)


def test_nothing_built_in_is_judged_on() -> None:
    text = "\n".join(map(whole, built_in()))
    problems = (TINY_R1 / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert problems
    assert not [p for p in problems if json.loads(p)["question"] in text.split("\n")]


def test_plain_text_becomes_passages_of_whole_words(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(4000)]
    paragraphs = [" ".join(words[start : start + 37]) for start in range(0, 3000, 37)]
    paragraphs.append(" ".join(words[3000:]))  # longer than a passage
    path = tmp_path / "book.txt"
    path.write_bytes("\r\n\r\n".join(paragraphs).encode("utf-8-sig"))
    found = read_samples(path, 10_000)
    assert Counter(word for s in found for word in s.text.split()) == Counter(
        " ".join(paragraphs).split()
    )
    assert all(len(sample.text) <= MOST_CHARACTERS for sample in found)
    assert sum(len(sample.text) < 1200 for sample in found) <= 1


def test_text_without_any_border_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("字" * 5001, encoding="utf-8")
    assert sorted(len(s.text) for s in read_samples(path)) == [1001, 2000, 2000]


def test_json_lines(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    lines = [{"text": "a\u2028b", "kind": "x"}, {"messages": chat}, {"text": "long " * 100_000}]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n")
    found = sorted(read_samples(path), key=lambda sample: len(whole(sample)))
    assert found[0] == Sample("a\u2028b", kind="x")
    assert list(found[1].messages) == chat
    assert len(found[2].text) == LONGEST_SAMPLE


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n \r\n\r\n", "holds no text"),
        ("a.txt", b"ab\xff", "UTF-8"),
        ("a.jsonl", b"\n", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not valid JSON"),
        ("a.jsonl", b'["a"]', "line 1 holds a JSON list"),
        ("a.jsonl", b'{"prompt": "a"}', "has the fields"),
        ("a.jsonl", b'{"text": "a", "messages": []}', "has the fields"),
        ("a.jsonl", b'{"text": 3}', "some text"),
        ("a.jsonl", b'{"text": " "}', "some text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "valid Unicode"),
        ("a.jsonl", b'{"text": "a", "kind": 1}', '"kind": 1'),
        ("a.jsonl", b'{"messages": []}', "line 1: the conversation is"),
        ("a.jsonl", b'{"messages": [{"content": "a"}]}', "line 1: message 0 is"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "content that is text"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "\\udc00"}]}', "valid Unicode"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_hold_no_samples(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_samples(path)


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(RequestError, match="a FIFO"):
        read_samples(tmp_path / "a.txt")
    with pytest.raises(RequestError, match="missing"):
        read_samples(tmp_path / "b.txt")
    with (tmp_path / "c.txt").open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(RequestError, match="200000000 bytes"):
        read_samples(tmp_path / "c.txt")


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "5"])
def test_count_is_a_positive_integer(count: object) -> None:
    with pytest.raises(RequestError, match="count"):
        built_in(count)  # type: ignore[arg-type]


def test_a_conversation_keeps_the_reasoning_of_its_last_answer() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(TINY_R1)
    asked = ({"role": "user", "content": "What is 2 + 3?"},)
    thought = "<think>\nI need 2 + 3.\n</think>\n\nThe answer is **5**."
    prompt = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ours = Tokenizer(TINY_R1)
    for answer, text in ((thought, thought), ("5", "<think>\n</think>\n\n5")):
        sample = Sample(messages=(*asked, {"role": "assistant", "content": answer}))
        wanted = prompt.removesuffix("<think>\n") + text + theirs.eos_token
        ids = theirs.encode(wanted, add_special_tokens=False)
        assert sample_ids(sample, ours, 1000) == ids
        assert sample_ids(sample, ours, 9) == ids[:9]


def test_other_samples_are_what_the_tokenizer_says(byte_tokenizer: Tokenizer) -> None:
    text = Sample("a text")
    assert sample_ids(text, byte_tokenizer, 1000) == byte_tokenizer.encode("a text")
    question: dict[str, str] = {"role": "user", "content": "Hi."}
    ids = sample_ids(Sample(messages=(question,)), byte_tokenizer, 1000)
    prompt = byte_tokenizer.apply_chat_template([question], add_generation_prompt=False)
    assert ids == byte_tokenizer.encode(prompt, add_special_tokens=False)
