from __future__ import annotations

import random
from pathlib import Path

import pytest

from byte_tokenizer import write_tokenizer
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
    assert stream.take() == ("", "", [])
    assert (reasoning, text) == ("wé sée 🐋", "The answer is 7")


def test_text_stream_releases_what_it_held_back(byte_tokenizer: Tokenizer) -> None:
    stream = TextStream(byte_tokenizer, ("STOP",), inside_reasoning=False)
    for token in byte_tokenizer.encode("end ST🐋")[:-1]:
        stream.push(token)
    assert stream.take() == ("", "end ", [])
    stream.close()
    stream.close()
    assert stream.take() == ("", "ST\ufffd", [])


def special_tokenizer(directory: Path) -> Tokenizer:
    """Bytes, and special tokens that no answer shows."""
    write_tokenizer(directory, extra_special_tokens=["<|im_end|>", "<|a|>", "<|b|>"])
    return Tokenizer(directory)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ((), "One two three"),
        (("<|im_end|>",), "One two"),
        (("<|a|>",), "One"),
        (("<|b|>", "<|a|>"), "One"),
        (("<|a|> two",), "One"),
        (("e<|a|> t",), "On"),
        (("two<|im_end|>\n",), "One two three"),
        (("<|im_end|> three",), "One two"),
        (("<|im_end|> thre",), "One two"),
        (("e two",), "On"),
        (("two three",), "One "),
        (("two three", "<|im_end|>"), "One two"),
        (("<|im_end|>", "One"), ""),
        (("<|im_end|>more", "ee"), "One two thr"),
        (("<|im_end|", "nothing"), "One two"),
        (("|im",), "One two"),
    ],
    ids=str,
)
def test_stop_strings_may_name_special_tokens(
    tmp_path: Path, stop: tuple[str, ...], shown: str, inside: bool
) -> None:
    tokenizer = special_tokenizer(tmp_path)
    text = "One<|a|> two<|im_end|> three"
    stream, got = TextStream(tokenizer, stop, inside_reasoning=inside), ["", ""]
    for token in tokenizer.encode(text, add_special_tokens=False):
        stream.push(token)
        got = [before + more for before, more in zip(got, stream.take()[:2], strict=True)]
        assert "".join(got) in shown or shown.startswith("".join(got))
        if stream.stopped:
            break
    stream.close()
    got = [before + more for before, more in zip(got, stream.take()[:2], strict=True)]
    assert stream.stopped == (shown != "One two three")
    expected = [shown.rstrip(), ""] if inside else ["", shown]
    assert got == expected


def test_a_special_token_spelled_by_letters_stops_too(tmp_path: Path) -> None:
    tokenizer = special_tokenizer(tmp_path)
    tokenizer.library.encode_special_tokens = True
    ids = tokenizer.encode("One<|im_end|>", add_special_tokens=False)
    assert len(ids) == len("One<|im_end|>")
    stream = TextStream(tokenizer, ("<|im_end|>",), inside_reasoning=False)
    for token in ids:
        assert not stream.stopped
        stream.push(token)
    assert stream.stopped
    assert stream.take() == ("", "One", [])


def test_hidden_and_shown_text_at_random() -> None:
    """Against the definition: the first stop string in the text as it is shown, or with all."""
    rng = random.Random(0)
    ended = 0
    for _ in range(3000):
        parts = [(rng.choice(["a", "b", "ab", "<x>"]), rng.random() < 0.3) for _ in range(8)]
        stop = tuple(rng.choice(["a", "ab", "<x>", "a<x>", "xb", "ba", "b<"]) for _ in range(2))
        matcher, got, wanted, full, shown = StopMatcher(stop), "", "", "", list[int]()
        for text, hidden in parts:
            shown += [] if hidden else range(len(full), len(full) + len(text))
            full += text
            wanted = "".join(full[at] for at in shown)
            begins = [full.find(s) for s in stop if s in full]
            begins += [shown[wanted.find(s)] for s in stop if s in wanted]
            got += matcher.push(text, hidden=hidden)
            assert matcher.stopped == bool(begins)
            if begins:
                wanted = "".join(full[at] for at in shown if at < min(begins))
                ended += 1
                break
            assert wanted.startswith(got)
        assert got + matcher.flush() == wanted
    assert ended > 1000
