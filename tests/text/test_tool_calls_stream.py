"""Tool calls in an answer that streams token by token, with reasoning and special tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepmnn.engine.completion import Chunk, Completion
from deepmnn.text.stream import Streamed, TextStream
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls import ToolCall, ToolCallDelta, tool_format
from deepmnn.text.tool_calls.call import add_deltas
from tool_templates import TEMPLATES, tool_tokenizer

BLOCKS = {
    "r1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n"
    '{"at": "Bern", "n": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "v3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>"
    '{"at": "Bern", "n": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "v4": '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="find">\n<｜DSML｜parameter name="at" '
    'string="true">Bern</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">3'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    "qwen3": '\n<tool_call>\n{"name": "find", "arguments": {"at": "Bern", "n": 3}}\n</tool_call>',
}
CALLS = [ToolCall("find", '{"at": "Bern", "n": 3}')]


def streamed(stream: TextStream, tokenizer: Tokenizer, text: str) -> list[Streamed]:
    """What each token of a text adds, and the end."""
    parts = []
    for token in tokenizer.encode(text, add_special_tokens=False):
        stream.push(token)
        parts.append(stream.take())
        if stream.stopped:
            break
    stream.close()
    return [*parts, stream.take()]


def whole(parts: list[Streamed]) -> tuple[str, str, list[ToolCall]]:
    calls = list[ToolCall]()
    for part in parts:
        add_deltas(calls, part.tool_calls)
    return "".join(p.reasoning for p in parts), "".join(p.text for p in parts), calls


@pytest.mark.parametrize("special", [False, True], ids=["spelled", "special"])
@pytest.mark.parametrize("template", BLOCKS)
def test_calls_come_apart_from_reasoning_and_text(
    template: str, special: bool, tmp_path: Path
) -> None:
    tokenizer, block = tool_tokenizer(tmp_path, template, special=special), BLOCKS[template]
    form = tool_format(tokenizer)
    answer = f"Let me {block} see.\n</think>\n\nA moment.{block}"
    parts = streamed(TextStream(tokenizer, (), True, tools=form), tokenizer, answer)
    reasoning, text, calls = whole(parts)
    assert (text, calls) == ("A moment.", CALLS)
    hidden = block
    for mark in form.special if form else ():
        hidden = hidden.replace(mark, "")
    assert reasoning == f"Let me {hidden} see."
    pieces = [delta for part in parts for delta in part.tool_calls]
    assert pieces[0] == ToolCallDelta(0, "find", pieces[0].arguments)
    assert len(pieces) > 5


@pytest.mark.parametrize("template", ["r1", "v3.1", "v4"])
def test_special_markers_are_hidden_from_text_without_tools(template: str, tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path, template, special=True)
    _, text, calls = whole(
        streamed(TextStream(tokenizer, (), False), tokenizer, f"Hm.{BLOCKS[template]}")
    )
    assert calls == []
    assert "find" in text
    assert "｜" not in text


def test_an_unfinished_character_stays_in_front_of_a_call(tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path, "v3.1", special=True)
    stream = TextStream(tokenizer, (), False, tools=tool_format(tokenizer))
    for token in tokenizer.encode("Hm🐋", add_special_tokens=False)[:-1]:
        stream.push(token)
    parts = [stream.take(), *streamed(stream, tokenizer, BLOCKS["v3.1"])]
    assert whole(parts)[1:] == ("Hm\ufffd", CALLS)


@pytest.mark.parametrize("special", [False, True], ids=["spelled", "special"])
def test_stop_strings_end_answers_with_calls(special: bool, tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path, "v3.1", special=special)
    for stop, text, calls in (
        ("<｜tool▁calls▁begin｜>", "Hm.\n", []),
        ("Bern", "Hm.", [ToolCall("find", '{"at": "')]),
        ("<｜tool▁calls▁end｜>", "Hm.", CALLS),
    ):
        stream = TextStream(tokenizer, (stop,), False, tools=tool_format(tokenizer))
        parts = streamed(stream, tokenizer, f"Hm.\n{BLOCKS['v3.1']} never")
        assert whole(parts)[1:] == (text, calls)
        assert stream.stopped


@pytest.mark.parametrize(
    ("inside", "answer", "expected"),
    [
        (True, "abc</think>", 11),
        (True, "abc</think>\n\nText.", 11),
        (True, "abc", 3),
        (False, "<think>a</think>b", 16),
        (False, "\n<think>a", 9),
        (False, "<think", 0),
        (False, "Text.</think>", 0),
        (True, "", 0),
    ],
)
def test_tokens_of_the_reasoning_are_counted(
    inside: bool, answer: str, expected: int, tmp_path: Path
) -> None:
    tokenizer = tool_tokenizer(tmp_path, "qwen3")
    stream = TextStream(tokenizer, (), inside)
    for letter in answer:  # of the tags, too
        (token,) = tokenizer.encode(letter, add_special_tokens=False)
        stream.push(token)
    assert stream.reasoning_tokens == expected


def test_one_token_may_be_several_pieces_of_one_call(tmp_path: Path) -> None:
    """What is taken at once is joined."""
    tokenizer = tool_tokenizer(tmp_path, "qwen3")
    stream = TextStream(tokenizer, (), False, tools=tool_format(tokenizer))
    for token in tokenizer.encode(BLOCKS["qwen3"] * 2, add_special_tokens=False):
        stream.push(token)
    assert stream.take().tool_calls == [
        ToolCallDelta(index, CALLS[0].name, CALLS[0].arguments) for index in (0, 1)
    ]


def test_completions_put_calls_together() -> None:
    completion = Completion()
    for deltas in (
        [ToolCallDelta(0, "f", "")],
        [ToolCallDelta(0, "", '{"a"'), ToolCallDelta(0, "", ": 1}")],
        [],
        [ToolCallDelta(1, "g", "{}")],
    ):
        chunk = Chunk(
            0, "", "", [1], None, 1, 0, 1, 0.1, 0.1, tool_calls=deltas, reasoning_tokens=7
        )
        completion.add(chunk)
    assert completion.tool_calls == [ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")]
    assert completion.reasoning_tokens == 7
    assert set(BLOCKS) < set(TEMPLATES)
