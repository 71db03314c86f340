from __future__ import annotations

import json
from pathlib import Path

import pytest

from byte_tokenizer import BOS, write_tokenizer
from deepmnn.errors import RequestError, TokenizerError
from deepmnn.measure.texts import built_in_texts, cut, read_texts
from deepmnn.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "plain", add_bos_token=False)
    return Tokenizer(tmp_path / "plain")


@pytest.fixture
def with_bos(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path / "bos")
    return Tokenizer(tmp_path / "bos")


def test_pieces_are_the_text_in_order(tokenizer: Tokenizer) -> None:
    text = "".join(chr(97 + i % 26) for i in range(100))
    pieces = cut(tokenizer, [text], 30)
    assert list(map(len, pieces)) == [30, 30, 30, 10]
    assert tokenizer.decode([id for piece in pieces for id in piece]) == text
    assert cut(tokenizer, [text], 30, 2) == pieces[:2]
    assert cut(tokenizer, [text, "xyz"], 30)[-1] == tokenizer.encode("xyz")
    assert list(map(len, cut(tokenizer, [text[:31]], 30))) == [30], "one token predicts nothing"
    assert cut(tokenizer, ["", "a"], 30) == []
    with pytest.raises(RequestError, match="at least 2"):
        cut(tokenizer, [text], 1)


def test_every_piece_begins_as_the_tokenizer_begins_a_text(with_bos: Tokenizer) -> None:
    bos = with_bos.token_id(BOS)
    pieces = cut(with_bos, ["x" * 50, BOS + "y" * 7], 20)
    assert list(map(len, pieces)) == [20, 20, 13, 8]
    assert [piece.count(bos) for piece in pieces] == [1, 1, 1, 1]
    assert all(piece[0] == bos for piece in pieces)


def test_a_conversation_is_the_templates_text(with_bos: Tokenizer) -> None:
    (piece,) = cut(with_bos, [CHAT], 100)
    assert piece == with_bos.encode_chat(CHAT, add_generation_prompt=False)
    write_tokenizer(with_bos.directory, chat_template=None)
    with pytest.raises(TokenizerError, match="no chat template"):
        cut(Tokenizer(with_bos.directory), [CHAT], 100)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "prose.txt"
    path.write_text("\ufeffTwo\nlines, 中文\n", encoding="utf-8")
    assert read_texts(path) == ["Two\nlines, 中文\n"]
    lines = [{"text": "one\u2028two"}, {"messages": CHAT}, {"text": "three", "id": 7}]
    path = tmp_path / "prose.JSONL"
    path.write_text("\n\n".join(json.dumps(x, ensure_ascii=False) for x in lines), encoding="utf-8")
    assert read_texts(path) == ["one\u2028two", CHAT, "three"]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        '{"text": 5}',
        '{"messages": []}',
        '{"messages": ["Hi"]}',
        '{"messages": "Hi"}',
        "[" * 100_000,
    ],
)
def test_malformed_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line)
    with pytest.raises(RequestError, match=r"a\.jsonl, line 2"):
        read_texts(tmp_path / "a.jsonl")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("empty", "binary", "missing", "."):
        with pytest.raises(RequestError):
            read_texts(tmp_path / name)
    with pytest.raises(RequestError, match="a device"):
        read_texts("/dev/zero")


def test_texts_that_come_with_python() -> None:
    (pages,), (module,) = built_in_texts()
    assert len(str(pages)) > 100_000
    assert "def mean(" in str(module)
