from __future__ import annotations

import random

import pytest

from deepmnn.text.reasoning import ReasoningSplitter
from deepmnn.text.stop import StopMatcher, partial_match
from deepmnn.text.stream import TextStream
from deepmnn.text.tokenizer import Tokenizer


def pieces(text: str, rng: random.Random) -> list[str]:
    """The text cut at random places."""
    cuts = sorted(rng.sample(range(len(text) + 1), rng.randint(0, min(len(text), 8))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("one two three", ("two",)),
        ("aaab", ("aab",)),
        ("abababac tail", ("ababac",)),
        ("nothing to see", ("xyz", "seek")),
        ("first of both", ("both", "of b")),
        ("ends with en", ("end.",)),
        ("a longer start: abc", ("abcd", "cx")),
        ("naïve 你好 text", ("好 t",)),
    ],
)
def test_stop_strings_are_found_across_borders(text: str, stop: tuple[str, ...]) -> None:
    ends = [at for at in map(text.find, stop) if at >= 0]
    wanted = text[: min(ends)] if ends else text
    rng = random.Random(0)
    for _ in range(100):
        matcher, got = StopMatcher(stop), ""
        for piece in pieces(text, rng):
            got += matcher.push(piece)
            assert wanted.startswith(got), "text after a stop string got out"
            if matcher.stopped:
                break
        assert matcher.stopped == bool(ends)
        assert got + matcher.flush() == wanted


def test_nothing_is_held_back_longer_than_needed() -> None:
    matcher = StopMatcher(("END",))
    assert [matcher.push(piece) for piece in ("a", "bE", "N", "x", "E")] == [
        "a",
        "b",
        "",
        "ENx",
        "",
    ]
    assert matcher.flush() == "E"
    assert partial_match("abc", ()) == 0
    assert partial_match("abc", ("abcd", "cx")) == 3
    assert partial_match("say <thi", ("</think>", "<think>")) == 4


@pytest.mark.parametrize(
    ("inside", "text", "reasoning", "answer"),
    [
        (True, "\nLet me see.\n</think>\n\nIt is 4.", "Let me see.", "It is 4."),
        (True, "</think>It is 4.", "", "It is 4."),
        (True, "\n\n</think>\n\nIt is 4. \n", "", "It is 4. \n"),
        (True, "never ends \n", "never ends", ""),
        (True, "a < b </thin air", "a < b </thin air", ""),
        (False, "<think>\nhm\n</think>\n\nYes.", "hm", "Yes."),
        (False, " \n<think>hm</think>Yes.", "hm", "Yes."),
        (False, "  plain text ", "", "  plain text "),
        (False, "<thinking> is a word", "", "<thinking> is a word"),
        (False, "say <think>x</think>", "", "say <think>x</think>"),
        (False, "<thi", "", "<thi"),
        (False, "\n", "", "\n"),
        (True, "a</think>b</think> c", "a", "b</think> c"),
        (True, "", "", ""),
    ],
)
def test_reasoning_is_split_across_borders(
    inside: bool, text: str, reasoning: str, answer: str
) -> None:
    rng = random.Random(0)
    for _ in range(100):
        splitter = ReasoningSplitter(inside)
        parts = [splitter.push(piece) for piece in pieces(text, rng)] + [splitter.flush()]
        assert "".join(part[0] for part in parts) == reasoning
        assert "".join(part[1] for part in parts) == answer


def test_text_stream_puts_it_together(byte_tokenizer: Tokenizer) -> None:
    answer = "\nwé sée 🐋\n</think>\n\nThe answer is 7STOP never seen"
    ids = byte_tokenizer.encode(answer)
    stream = TextStream(byte_tokenizer, ("STOP",), inside_reasoning=True)
    reasoning = text = ""
    for token in ids:
        stream.push(token)
        more = stream.take()
        reasoning, text = reasoning + more[0], text + more[1]
        if stream.stopped:
            break
    stream.close()
    assert stream.take() == ("", "")
    assert (reasoning, text) == ("wé sée 🐋", "The answer is 7")


def test_text_stream_releases_what_it_held_back(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer, ("STOP",), inside_reasoning=False)
    for token in byte_tokenizer.encode("end ST🐋")[:-1]:
        stream.push(token)
    assert stream.take() == ("", "end ")
    stream.close()
    stream.close()
    assert stream.take() == ("", "ST\ufffd")
