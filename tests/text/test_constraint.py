"""Which tokens a grammar lets come next, and how it leaves the reasoning alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from byte_tokenizer import EOS, MARKS, write_tokenizer
from deepmnn.backends.base import F32
from deepmnn.errors import MissingDependencyError, RequestError
from deepmnn.text.constraint import Constraint, Grammars, json_answer
from deepmnn.text.json_schema import checked_schema
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

WIDTH = 300
"""Of the logits; the tokenizers know fewer."""
BEYOND = 290
"""An end token that they do not know."""
LONG = [">{", ">Ċ", "}Ċ", "</", "think", ">hi"]
"""Tokens of more than a byte."""
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def merged(directory: Path, marks: list[AddedToken]) -> Tokenizer:
    """Bytes, the tokens LONG, and `marks`."""
    write_tokenizer(directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [w for long in LONG for w in (long[:i] for i in range(2, len(long) + 1))]
    tokens = [EOS, *alphabet, *dict.fromkeys(words)]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [(word[:-1], word[-1]) for word in dict.fromkeys(words)]
    library = Library(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(EOS, normalized=False)])
    library.add_tokens(marks)
    library.save(str(directory / "tokenizer.json"))
    fields = {"eos_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return Tokenizer(directory)


@pytest.fixture(scope="module", params=["plain marks", "special marks", "no marks"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    special = request.param == "special marks"
    marks = [] if request.param == "no marks" else MARKS
    added = [AddedToken(mark, normalized=False, special=special) for mark in marks]
    return merged(tmp_path_factory.mktemp("merged"), added)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, WIDTH, ends(tokenizer))


def ends(tokenizer: Tokenizer) -> list[int]:
    eos = tokenizer.token_id(EOS)
    assert eos is not None
    return [eos, BEYOND, 10**9]


def answer(schema: Any) -> str:
    return json_answer(checked_schema(schema, "schema"))


def allowed(constraint: Constraint) -> set[int]:
    logits = np.arange(WIDTH, dtype=np.float32)
    masked = constraint.mask(logits)
    kept = np.flatnonzero(masked > -np.inf)
    np.testing.assert_array_equal(masked[kept], logits[kept])
    return set(kept.tolist())


def walk(constraint: Constraint, seed: int, most: int = 400) -> list[int]:
    """Tokens that a model might take which knows nothing."""
    rng, taken = np.random.default_rng(seed), []
    while not constraint.complete and len(taken) < most:
        taken.append(int(rng.choice(sorted(allowed(constraint)))))
        constraint.accept(taken[-1])
    return taken


def write(tokenizer: Tokenizer, constraint: Constraint, text: str) -> None:
    for token in tokenizer.encode(text, add_special_tokens=False):
        assert token in allowed(constraint), text
        constraint.accept(token)


def text_of(tokenizer: Tokenizer, tokens: list[int], inside: bool) -> tuple[str, str]:
    """(reasoning, text), as clients get them."""
    stream = TextStream(tokenizer, (), inside)
    for token in tokens:
        stream.push(token)
    stream.close()
    return stream.take()[:2]


@pytest.mark.parametrize("seed", range(8))
def test_answers_end_where_they_are_whole(
    tokenizer: Tokenizer, grammars: Grammars, seed: int
) -> None:
    """All end tokens may come there, those that the tokenizer does not know, too."""
    constraint = grammars.constraint(answer({"type": "integer"}), False)
    rng, text, known = np.random.default_rng(seed), "", set(ends(tokenizer)[:2])
    for _ in range(12):
        choice = allowed(constraint)
        assert choice & known == (known if text.strip() not in ("", "-") else set())
        assert max(choice - known) < tokenizer.vocab_size
        token = int(rng.choice(sorted(choice - known - {grammars.open_id})))
        text += tokenizer.decode([token])
        constraint.accept(token)
        assert not constraint.complete
    assert isinstance(json.loads(text), int)
    constraint.accept(BEYOND)
    assert constraint.complete


def test_a_whole_answer_takes_no_end_token(tokenizer: Tokenizer, grammars: Grammars) -> None:
    constraint = grammars.constraint(answer(DIGIT), False)
    write(tokenizer, constraint, "7")
    assert constraint.complete


@pytest.mark.parametrize("text", ["</think>", f"a{EOS}b", "<think>", "<｜User｜>", 'é日\n"\\</'])
def test_texts_that_look_like_special_tokens(
    tokenizer: Tokenizer, grammars: Grammars, text: str
) -> None:
    for seed in range(10):
        schema = {"type": "object", "properties": {text: {"const": text}}, "required": [text]}
        constraint = grammars.constraint(answer({**schema, "additionalProperties": False}), True)
        write(tokenizer, constraint, "</think>")
        taken = walk(constraint, seed)
        assert constraint.complete
        assert json.loads(tokenizer.decode(taken)) == {text: text}


def test_white_space_has_an_end(tokenizer: Tokenizer, grammars: Grammars) -> None:
    """Of a model that writes some wherever it may."""
    constraint = grammars.constraint(
        answer({"type": "array", "items": DIGIT, "minItems": 3}), False
    )
    text = ""
    while not constraint.complete and not text.endswith("0"):
        choice = {t: tokenizer.decode([t]) for t in sorted(allowed(constraint))}
        token = max(choice, key=lambda t: (choice[t].isspace(), choice[t] == "["))
        text += choice[token]
        constraint.accept(token)
        assert len(text) < 100
    assert "[" in text


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("close", ["</think>", "</think>\n\n"])
def test_the_reasoning_is_free(
    tokenizer: Tokenizer, grammars: Grammars, inside: bool, close: str
) -> None:
    constraint = grammars.constraint(answer(DIGIT), inside)
    if not inside:
        if grammars.open_id is None:
            assert tokenizer.token_id("<") not in allowed(constraint)
            return
        write(tokenizer, constraint, "<think>")
    barred = {*ends(tokenizer)[:2], *range(tokenizer.vocab_size, WIDTH)}
    assert allowed(constraint) == set(range(WIDTH)) - barred
    write(tokenizer, constraint, '\nNot {"a": 1}, </thin or </thi or < / think>. So')
    write(tokenizer, constraint, close)
    assert not constraint.complete
    assert {tokenizer.decode([t]) for t in allowed(constraint)} >= set("0123456789")
    assert tokenizer.token_id("a") not in allowed(constraint)
    write(tokenizer, constraint, "7")
    assert constraint.complete


def test_only_the_first_token_opens_the_reasoning(tokenizer: Tokenizer, grammars: Grammars) -> None:
    constraint = grammars.constraint(answer({"type": "array", "items": DIGIT}), False)
    write(tokenizer, constraint, "[")
    assert grammars.open_id not in allowed(constraint)


@pytest.mark.parametrize("begun", range(len("</think>")))
def test_no_token_says_more_than_the_tag(
    tokenizer: Tokenizer, grammars: Grammars, begun: int
) -> None:
    """In bytes, as a model may write it that has a token for it."""
    constraint = grammars.constraint(answer(DIGIT), True)
    for character in "a</think>"[: begun + 1]:
        token = tokenizer.token_id(character)
        assert token in allowed(constraint)
        constraint.accept(token)
    missing = [token for token in (tokenizer.token_id(t) for t in (">{", ">hi")) if token]
    assert len(missing) == 2
    assert bool(set(missing) & allowed(constraint)) == (begun != 7)
    assert tokenizer.token_id(">Ċ") in allowed(constraint)


@pytest.mark.parametrize("seed", range(20))
def test_random_tokens_around_the_tag(tokenizer: Tokenizer, grammars: Grammars, seed: int) -> None:
    """Wherever a client finds the end of the reasoning, what follows is an answer."""
    rng = np.random.default_rng(seed)
    constraint = grammars.constraint(answer(DIGIT), True)
    pieces = [
        tokenizer.encode(t, add_special_tokens=False) for t in ("<", "</", "think", ">", "</think>")
    ]
    pieces += [[t] for word in LONG if (t := tokenizer.token_id(word)) is not None]
    pieces += [[t] for mark in MARKS if (t := tokenizer.token_id(mark)) is not None]
    taken: list[int] = []
    while not constraint.complete and len(taken) < 3000:
        choice = allowed(constraint)
        some = [piece[0] for piece in pieces if piece[0] in choice]
        taken.append(int(rng.choice(some or sorted(choice))))
        constraint.accept(taken[-1])
    assert constraint.complete
    _, text = text_of(tokenizer, taken, True)
    assert text.strip() in set("0123456789")


def test_a_copy_begins_anew(tokenizer: Tokenizer, grammars: Grammars) -> None:
    first = grammars.constraint(answer({"enum": ["ab", "ac"]}), True)
    fresh = allowed(first)
    write(tokenizer, first, 'so</think>"a')
    here = allowed(first)
    copied = first.copy()
    assert allowed(copied) == fresh
    write(tokenizer, copied, '</think>"ab"')
    assert copied.complete
    assert allowed(first) == here
    assert not first.complete


def test_markers_are_tokens_where_there_are_any(tokenizer: Tokenizer, grammars: Grammars) -> None:
    token = tokenizer.token_id("<｜User｜>")
    marker = grammars.marker("<｜User｜>")
    assert marker == ('"<｜User｜>"' if token is None else f"<[{token}]>")
    end = 'a "quoted" \\ mark\n'
    lark = f"answer: {marker} BODY {grammars.marker(end)}\nBODY: /[xy]{{3}}/"
    constraint = grammars.constraint(lark, False)
    write(tokenizer, constraint, f"<｜User｜>xyx{end}")
    assert constraint.complete


def test_a_token_that_may_not_come(tokenizer: Tokenizer, grammars: Grammars) -> None:
    constraint = grammars.constraint(answer(DIGIT), False)
    wrong = tokenizer.token_id("x")
    assert wrong is not None
    with pytest.raises(RequestError, match="can not go on"):
        constraint.accept(wrong)
    with pytest.raises(RequestError, match="can not go on"):
        constraint.mask(np.zeros(WIDTH, np.float32))


def test_what_is_no_number_stays_none(grammars: Grammars) -> None:
    """So that sampling tells a broken model from a grammar."""
    logits: F32 = np.full(WIDTH, np.nan, np.float32)
    constraint = grammars.constraint(answer(DIGIT), False)
    assert np.isnan(constraint.mask(logits)).any()


def many_patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f"(.*[a-m]{{{i}}}.*[n-z]){{9}}"} for i in range(count)]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "what"},
        {"not": {}},
        {"$ref": "http://localhost/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"$ref": "#/$defs/nowhere"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "array", "uniqueItems": True},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "(a)\\1"},
        {"type": "string", "maxLength": 2**52},
        {"allOf": many_patterns(8)},
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(9)]} for i in range(9)]},
        {"type": "integer", "multipleOf": 999999937},
    ],
)
def test_schemas_that_no_answer_is_held_to(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"no answer can be held|has the number|has multipleOf"):
        grammars.constraint(answer(schema), False)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"value {number}" for number in range(3000)]},
        {"type": "array", "items": {"type": "array", "maxItems": 10**6}, "minItems": 10**6},
        {"type": "string", "minLength": 10**5, "maxLength": 10**7},
        {"type": "string", "pattern": "^((a+)+|((b{1,100}){1,100}){1,100})$"},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(500)}},
        {"$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}}
        | {"$ref": "#/$defs/a"},
        {"prefixItems": many_patterns(20)},
    ],
)
def test_hostile_schemas_come_to_an_end(grammars: Grammars, schema: dict[str, Any]) -> None:
    """Within llguidance's limits: an answer of a few tokens, or an error."""
    constraint = grammars.constraint(answer(schema), False)
    try:
        taken = walk(constraint, 0, most=20)
    except RequestError:
        return
    assert taken


def test_equal_grammars_are_compiled_once(grammars: Grammars, monkeypatch: Any) -> None:
    first = grammars.constraint(answer({"const": "once"}), False)
    monkeypatch.setattr(grammars._library, "LLMatcher", None)
    again = grammars.constraint(answer({"const": "once"}), True)
    assert first is not again


def test_a_tokenizer_whose_bytes_nobody_knows(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RequestError, match="can not follow a grammar"):
        Grammars(Tokenizer(tmp_path), 2, [1])


def test_without_llguidance(byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependencyError, match=r"deepmnn\[serve\]"):
        Grammars(byte_tokenizer, WIDTH, [1])
