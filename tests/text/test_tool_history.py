"""Earlier calls, as each published template wants them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepmnn.errors import RequestError
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_history import takes_tools, tool_messages, writes_calls
from tool_templates import TEMPLATES, tool_tokenizer

ARGUMENTS = {"city": 'Zürich "HB"', "days": 3}


def chat(arguments: Any, said: str | None = None) -> list[dict[str, Any]]:
    """A question, two calls and their results, as OpenAI's API has them."""
    calls = [
        {"id": "call_1", "function": {"name": "get_weather", "arguments": arguments}},
        {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
    ]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": said, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
        {"role": "tool", "tool_call_id": "call_2", "content": "Noon."},
    ]


@pytest.fixture(params=TEMPLATES, scope="module")
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return tool_tokenizer(tmp_path_factory.mktemp("model"), request.param)


@pytest.mark.parametrize("said", [None, "", "I look it up."])
def test_templates_write_calls_and_results(tokenizer: Tokenizer, said: str | None) -> None:
    for arguments in (json.dumps(ARGUMENTS, ensure_ascii=False), ARGUMENTS):
        text = tokenizer.apply_chat_template(tool_messages(tokenizer, chat(arguments, said)))
        for part in ("get_weather", "now", "Zürich", "It rains.", "Noon.", said or ""):
            assert text.count(part) == 1 or not part
        assert "None" not in text
        assert "'city'" not in text
        assert '\\"city' not in text


def test_the_form_of_arguments_is_the_templates(tmp_path: Path) -> None:
    written = '{"city":  "Bern"}'
    for template, expected in {
        "r1": written,
        "v3.1": written,
        "qwen3": written,  # takes both: what the model wrote stays as it was
        "qwen2.5": {"city": "Bern"},
        "v3.2": {"city": "Bern"},
    }.items():
        tokenizer = tool_tokenizer(tmp_path / template, template)
        made = tool_messages(tokenizer, chat(written))
        (call, now) = made[1]["tool_calls"]
        assert call["function"]["arguments"] == expected
        assert call["type"] == "function"
        assert now["function"]["arguments"] in ("{}", {})
        assert [message.get("name") for message in made[2:]] == ["get_weather", "now"]


def test_text_stands_apart_where_a_template_would_drop_the_calls(tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path, "r1")
    made = tool_messages(tokenizer, chat("{}", "I look it up."))
    assert [message["content"] for message in made[:3]] == ["Weather?", "I look it up.", None]
    assert "tool_calls" not in made[1]


def test_arguments_that_are_no_object_are_kept(tmp_path: Path) -> None:
    for template in ("qwen2.5", "v3.2"):
        tokenizer = tool_tokenizer(tmp_path / template, template)
        for wrong in ('{"city": "Ber', "[1]", "[" * 100_000):
            made = tool_messages(tokenizer, chat(wrong))
            assert made[1]["tool_calls"][0]["function"]["arguments"] == {"arguments": wrong}


def test_other_messages_stay_as_they_are(tokenizer: Tokenizer) -> None:
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hi.", "reasoning_content": "A greeting."},
    ]
    assert tool_messages(tokenizer, plain) == plain
    empty = {"role": "assistant", "content": None, "tool_calls": []}
    assert tool_messages(tokenizer, [empty]) == [{"role": "assistant", "content": ""}]


def test_which_templates_take_tools(tmp_path: Path) -> None:
    takes = {"r1": False, "v3.1": False, "v3.2": True, "qwen2.5": True, "smollm2": False}
    for template, expected in takes.items():
        tokenizer = tool_tokenizer(tmp_path / template, template)
        assert takes_tools(tokenizer) == expected
        assert writes_calls(tokenizer) == (template != "smollm2")


def test_a_template_that_writes_no_calls_refuses_them(tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path, "smollm2")
    plain = [{"role": "user", "content": "Hello"}]
    assert tool_messages(tokenizer, plain) == plain
    with pytest.raises(RequestError, match="does not write"):
        tool_messages(tokenizer, chat("{}"))


@pytest.mark.parametrize(
    "calls", [["now"], [{"function": {}}], [{"function": {"name": None}}], {"name": "now"}, 5]
)
def test_calls_of_the_wrong_form_are_refused(calls: object, tmp_path: Path) -> None:
    tokenizer = tool_tokenizer(tmp_path, "qwen3")
    with pytest.raises(RequestError, match="tool call of message 1"):
        tool_messages(
            tokenizer,
            [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": calls}],
        )


def test_a_template_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tool_tokenizer(tmp_path, "qwen3")
    takes_tools(tokenizer)
    monkeypatch.setattr(Tokenizer, "apply_chat_template", None)
    assert takes_tools(tokenizer)
    assert len(tool_messages(tokenizer, chat("{}"))) == 4
