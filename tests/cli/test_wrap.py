"""Answers wrap at words as they stream, however the text is cut into pieces."""

from __future__ import annotations

import random
import textwrap

import pytest
from wcwidth import wcswidth

from deepmnn.cli.wrap import Wrapper

WORDS = ["a", "to", "the", "model", "latent", "attention", "experts,", "(routed)", "tokens.", "42"]


def wrap(text: str, width: int, seed: int = 0) -> str:
    """Feeds the text in random pieces."""
    rng, wrapper, shown, at = random.Random(seed), Wrapper(lambda: width), "", 0
    while at < len(text):
        end = at + rng.randint(1, 7)
        shown += wrapper.feed(text[at:end])
        at = end
    return shown + wrapper.flush()


@pytest.mark.parametrize("seed", range(40))
def test_prose_wraps_as_textwrap_does(seed: int) -> None:
    rng = random.Random(seed)
    width = rng.randint(12, 90)
    paragraphs = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(3)]
    wanted = "\n\n".join(
        "\n".join(textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False))
        for paragraph in paragraphs
    )
    assert wrap("\n\n".join(paragraphs), width, seed) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_wide_characters_take_two_columns(seed: int) -> None:
    rng = random.Random(seed)
    pieces = ["深度", "学习", "模型", "，", "。", "mix", "é", "ハイ", "한국어", "（注）"]
    text = "".join(rng.choices(pieces, k=80))
    width = rng.randint(24, 60)
    lines = wrap(text, width, seed).split("\n")
    assert len(lines) > 2
    assert all(wcswidth(line) <= width for line in lines)
    assert "".join(lines) == text
    assert not any(line[:1] and line[0] in "，。）" for line in lines[1:])


@pytest.mark.parametrize(
    "text",
    [
        "```python\nreturn [value for value in the_values if value is not None]\n```\n",
        "    indented = code_that_is_longer_than_the_line(and_has, several, words)\n",
        "\tindented = code_that_is_longer_than_the_line(and_has, several, words)\n",
        "| a | table | with | many | columns | that | is | wider | than | this |\n",
        "https://example.org/a/long/address/that/nobody/wants/to/have/cut/into/pieces\n",
        "~~~\nsome text that goes on and on\n~~~\n",
        "a\n  b  \n\n\tc d\n",
    ],
)
def test_code_tables_and_long_words_stay_as_they_are(text: str) -> None:
    for seed in range(5):
        assert wrap(text, 20, seed) == text


def test_prose_after_code_and_items_of_lists_wrap() -> None:
    assert wrap("```\nx = 1\n```\nnow words again", 10) == "```\nx = 1\n```\nnow words\nagain"
    assert wrap("- one item\n    - a nested one", 12) == "- one item\n    - a\nnested one"
    assert wrap("1. first of all\n2) then", 9) == "1. first\nof all\n2) then"
    assert wrap("a\tbb cc", 12) == "a\tbb\ncc", "a tab goes to the next column of eight"
    assert wrap("see " + "x" * 25 + " on and on it", 20) == "see " + "x" * 25 + " on and on\nit"


def test_the_window_may_be_resized() -> None:
    width = [20]
    wrapper = Wrapper(lambda: width[0])
    shown = wrapper.feed("one two three four five six ")
    width[0] = 8
    shown += wrapper.feed("seven eight nine ten") + wrapper.flush()
    assert shown.split("\n")[0] == "one two three four"
    assert all(len(line) <= 8 for line in shown.split("\n")[2:])
