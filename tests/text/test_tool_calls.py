"""Calls that published templates write are read back, however the text comes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import write_tokenizer
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls import ToolCall, ToolFormat, tool_format
from deepmnn.text.tool_calls.call import add_deltas, joined
from deepmnn.text.tool_calls.deepseek import MARKERS, DeepSeekFormat
from deepmnn.text.tool_calls.dsml import DsmlFormat
from deepmnn.text.tool_calls.dsml_tags import V32, V41
from deepmnn.text.tool_calls.hermes import HermesFormat
from deepmnn.text.tool_history import tool_messages
from tool_templates import TEMPLATES, behind_assistant, tool_tokenizer

HERMES = HermesFormat(frozenset())
DEEPSEEK = DeepSeekFormat(frozenset(), fenced=True)
DSML = DsmlFormat(frozenset(), V32)

SAID = "One moment: a < b."
CALLS = [
    ToolCall("get_weather", '{"city": "Zürich \\"HB\\" <b>", "days": [1, {"x": null}]}'),
    ToolCall("now", "{}"),
    ToolCall("say", '{"text": "a\\nb\\\\", "loud": true, "times": -2.5}'),
]


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    """What comes out, in the end."""
    splitter, text, calls = form.splitter(), "", list[ToolCall]()
    for delta in [*(splitter.push(piece) for piece in pieces), splitter.flush()]:
        text += delta[0]
        add_deltas(calls, delta[1])
    return text, calls


def messages(said: str | None, calls: list[ToolCall]) -> list[dict[str, Any]]:
    """A conversation that ends with these calls."""
    made = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": c.name, "arguments": c.arguments},
        }
        for i, c in enumerate(calls)
    ]
    return [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": said, "tool_calls": made},
    ]


def written(tokenizer: Tokenizer, said: str | None, calls: list[ToolCall]) -> str:
    """The answer as the template writes it."""
    chat = tool_messages(tokenizer, messages(said, calls))
    return behind_assistant(tokenizer.apply_chat_template(chat, add_generation_prompt=False))


@pytest.fixture(params=TEMPLATES, scope="module")
def answer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ToolFormat, str, str]:
    """A format, an answer in it and the text of that answer."""
    tokenizer = tool_tokenizer(tmp_path_factory.mktemp("model"), request.param)
    form = tool_format(tokenizer)
    assert form is not None
    # R1's template writes text and calls as two answers.
    said = "" if request.param == "r1" else SAID
    return form, written(tokenizer, SAID, CALLS), said


def test_calls_are_read_back_however_they_are_cut(answer: tuple[ToolFormat, str, str]) -> None:
    form, text, said = answer
    expected = said, CALLS
    assert (read(form, [text])[0].strip(), read(form, [text])[1]) == expected
    expected = read(form, [text])
    assert read(form, list(text)) == expected
    for at in range(len(text)):
        assert read(form, [text[:at], text[at:]]) == expected
    rng = random.Random(0)
    for _ in range(50):
        cuts = sorted(rng.sample(range(len(text)), 12))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(form, pieces) == expected


def test_nothing_comes_out_that_must_be_taken_back(answer: tuple[ToolFormat, str, str]) -> None:
    form, text, _ = answer
    whole_text, whole = read(form, [text])
    splitter, said, calls = form.splitter(), "", list[ToolCall]()
    for char in text:
        more, deltas = splitter.push(char)
        said += more
        add_deltas(calls, deltas)
        assert whole_text.startswith(said)
        for call, expected in zip(calls, whole, strict=False):
            assert call.name == expected.name
            assert expected.arguments.startswith(call.arguments)


def test_an_answer_that_is_cut_off_loses_no_text(answer: tuple[ToolFormat, str, str]) -> None:
    form, text, _ = answer
    whole_text, whole = read(form, [text])
    for end in range(len(text)):
        said, calls = read(form, [text[:end]])
        if not calls:
            assert said == text[:end]
            continue
        assert said == whole_text
        assert [call.name for call in calls] == [call.name for call in whole[: len(calls)]]
        assert [call.arguments for call in calls[:-1]] == [
            call.arguments for call in whole[: len(calls) - 1]
        ]
        assert whole[len(calls) - 1].arguments.startswith(calls[-1].arguments)


def test_arguments_come_in_pieces(answer: tuple[ToolFormat, str, str]) -> None:
    form, text, _ = answer
    splitter = form.splitter()
    deltas = [delta for char in text for delta in splitter.push(char)[1]]
    assert [(delta.index, delta.name) for delta in deltas if delta.name] == [
        (index, call.name) for index, call in enumerate(CALLS)
    ]
    long = [delta.arguments for delta in deltas if delta.index == 0]
    assert len(long) > 20
    assert max(map(len, long)) <= 10
    assert [delta.index for delta in joined(deltas)] == [0, 1, 2]


WORDS = [
    *(
        "a",
        " ",
        "\n",
        '"',
        "'",
        "\\",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "</",
        "```",
        "\t",
        "é",
        "🐋",
        ": ,",
    ),
    *(
        "<tool_call>",
        "</tool_call>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *(
        "<｜DSML｜invoke",
        "</｜DSML｜invoke>",
        "</｜DSML｜function_calls>",
        "</｜DSML｜param",
        "\u2028",
    ),
]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 12)))


def random_json(rng: random.Random, depth: int = 0) -> Any:
    match rng.randint(0, 6 if depth < 3 else 4):
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.randint(-(10**9), 10**9)
        case 2:
            return rng.random() * 10 ** rng.randint(-8, 8)
        case 3 | 4:
            return random_text(rng)
        case 5:
            return [random_json(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {random_text(rng): random_json(rng, depth + 1) for _ in range(rng.randint(0, 3))}


@pytest.mark.parametrize("template", TEMPLATES)
def test_random_calls_are_read_back(template: str, tmp_path: Path) -> None:
    tokenizer, rng = tool_tokenizer(tmp_path, template), random.Random(template)
    form = tool_format(tokenizer)
    assert form is not None
    for _ in range(30):
        calls = []
        for _ in range(rng.randint(1, 3)):
            keys = [f"{rng.choice('abc')}-{i}_é" for i in range(rng.randint(0, 4))]
            arguments = {key: random_json(rng) for key in keys}
            name = "".join(rng.choice("abz_-.09") for _ in range(rng.randint(1, 20)))
            calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
        text = written(tokenizer, None, calls)
        size = rng.randint(1, 9)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert read(form, pieces) == ("", calls), text


def test_damaged_calls_are_the_same_however_they_are_cut(
    answer: tuple[ToolFormat, str, str],
) -> None:
    form, text, _ = answer
    rng, found = random.Random(0), set()
    for _ in range(60):
        damaged = text
        for _ in range(rng.randint(1, 3)):
            a, b = sorted(rng.sample(range(len(damaged) + 1), 2))
            size = min(b - a, 30)
            filling = rng.choice(["", rng.choice(WORDS), damaged[a : a + size] * 2])
            damaged = damaged[:a] + filling + damaged[a + size :]
        expected = read(form, [damaged])
        assert read(form, list(damaged)) == expected, damaged
        size = rng.randint(2, 9)
        pieces = [damaged[at : at + size] for at in range(0, len(damaged), size)]
        assert read(form, pieces) == expected, damaged
        found.add(len(expected[1]))
    assert len(found) > 2


@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        (HERMES, "Use the <tool_call> tag. ", "Use the <tool_call> tag. ", []),
        (HERMES, "</tool_call> ends it", "</tool_call> ends it", []),
        (HERMES, '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
        (HERMES, '<tool_call>{"a" b}', '<tool_call>{"a" b}', []),
        (HERMES, '<tool_call>{"name":"f"}</tool_call>', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"name":"f","arguments":null}', "", [("f", "{}")]),
        (HERMES, '<tool_call>{"name":"f","parameters":{"a":1}}', "", [("f", '{"a":1}')]),
        (HERMES, '<tool_call> {"arguments":{"a":1},"name":"f"}', "", [("f", '{"a": 1}')]),
        (HERMES, '<tool_call>{"name":"f","arguments":"{\\"a\\":1}"}', "", [("f", '{"a":1}')]),
        (HERMES, '<tool_call>{"name":"f","arguments":{},"id":"7"}</tool_call>', "", [("f", "{}")]),
        (
            HERMES,
            'A\n<tool_call>{"name":"f","arguments":{}}\n<tool_call>{"name":"g","arguments":{"x":2}'
            "}</tool_call>\n\nDone.\n",
            "A\n\nDone.\n",
            [("f", "{}"), ("g", '{"x":2}')],
        ),
        (
            HERMES,  # no JSON: a line break in a string; the end of the object is missing
            '<tool_call>{"name":"f","arguments":{"a":"1\n2"}}</tool_call>'
            '<tool_call>{"name":"g","arguments":{"a":1</tool_call>.',
            ".",
            [("f", '{"a":"1\n2"}'), ("g", '{"a":1')],
        ),
        (
            DEEPSEEK,  # without a fence; a stray end; text behind
            "Hm.\n<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
            '{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜> So.',
            "Hm. So.",
            [("f", '{"a": 1}')],
        ),
        (
            DEEPSEEK,  # no arguments, then none that are JSON
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n\n```<｜tool▁call▁end｜>"
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\ncity\n```<｜tool▁call▁end｜>"
            "<｜tool▁call▁begin｜>h<｜tool▁sep｜><｜tool▁call▁end｜>",
            "",
            [("f", "{}"), ("g", "city"), ("h", "{}")],
        ),
        (
            DEEPSEEK,  # the object is cut, another call follows
            '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": "x\n```'
            "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```\n"
            '{"b": [1]}\n```<｜tool▁call▁end｜>',
            "",
            [("f", '{"a": "x'), ("g", '{"b": [1]}')],
        ),
        (DEEPSEEK, "<｜tool▁calls▁begin｜> no", "<｜tool▁calls▁begin｜> no", []),
        (DEEPSEEK, "<｜tool▁call▁begin｜>" + "x" * 300, "<｜tool▁call▁begin｜>" + "x" * 300, []),
        (
            DSML,  # types that are wrong or missing, and words of Python
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
            '<｜DSML｜parameter name="a" string="false">so</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="b">7</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="c" string="false">True</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="d" string="false">"x"</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            "",
            [("f", '{"a": "so", "b": 7, "c": "True", "d": "x"}')],
        ),
        (
            DSML,  # one object for all; no block around
            '<｜DSML｜invoke name="f">\n{"a": "</｜DSML｜invoke>"}\n</｜DSML｜invoke>Done.',
            "Done.",
            [("f", '{"a": "</｜DSML｜invoke>"}')],
        ),
        (
            DSML,  # text within a call
            '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">x'
            "</｜DSML｜parameter>\nHm.</｜DSML｜invoke>",
            "\nHm.",
            [("f", '{"a": "x"}')],
        ),
        (DSML, "<｜DSML｜function_calls>\nno", "<｜DSML｜function_calls>\nno", []),
        (DSML, "<｜DSML｜invoke x>", "<｜DSML｜invoke x>", []),
    ],
)
def test_what_models_make_of_the_formats(
    form: ToolFormat, text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    expected = said, [ToolCall(*call) for call in calls]
    assert read(form, [text]) == expected
    assert read(form, list(text)) == expected


def test_special_tokens_never_stand_in_text() -> None:
    special = frozenset({"｜DSML｜"})
    pieces = ["A<", "｜DSML｜", " calls>B</", "｜DSML｜", " calls>"]
    assert read(DsmlFormat(special, V41), pieces) == ("A< calls>B</ calls>", [])
    form = DeepSeekFormat(frozenset(MARKERS), fenced=False)
    assert read(form, [MARKERS[0], "A", *MARKERS[1:], "B"]) == ("AB", [])


@pytest.mark.parametrize("form", [HERMES, DEEPSEEK, DSML], ids=["hermes", "deepseek", "dsml"])
def test_text_without_calls_is_let_through_at_once(form: ToolFormat) -> None:
    splitter = form.splitter()
    pieces = ["Hello", " wor", "ld:", " a <", "b", "> c", ".\n", "\nEnd", " "]
    said = [splitter.push(piece)[0] for piece in pieces]
    assert said == ["Hello", " wor", "ld:", " a", " <b", "> c", ".", "\n\nEnd", ""]
    assert splitter.flush() == (" ", [])


def test_models_without_a_known_format_have_none(tmp_path: Path) -> None:
    assert tool_format(tool_tokenizer(tmp_path / "smollm2", "smollm2")) is None


@pytest.mark.parametrize("other", ["<tool_call>\n<function=name>", "<tool_call>name<arg_key>"])
def test_other_formats_with_the_same_markers_are_not_taken_for_hermes(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "other", "{{ '" + other.replace("\n", "\\n") + "' }}")
    assert tool_format(tool_tokenizer(tmp_path, "other")) is None


def test_a_model_without_a_template_is_known_by_its_vocabulary(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None, extra_special_tokens=["｜DSML｜"])
    form = tool_format(Tokenizer(tmp_path))
    assert isinstance(form, DsmlFormat)
    assert form.special == {"｜DSML｜"}


def test_examples_are_calls(answer: tuple[ToolFormat, str, str]) -> None:
    form = answer[0]
    text = form.example.replace("<value>", "1").replace("true|false", "false")
    assert read(form, [text]) == ("", [ToolCall("<function name>", '{"<argument>": 1}')])
