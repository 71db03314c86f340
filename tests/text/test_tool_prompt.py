"""Tools in the messages themselves, for templates that know none."""

import json
import re

from deepmnn.text.tool_calls.deepseek import DeepSeekFormat
from deepmnn.text.tool_prompt import describe_tools, tell_tools

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SUB = {"type": "function", "function": {"name": "sub", "description": "a − b"}}
ASKED = {"role": "user", "content": "1 + 2?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_tools_are_described_in_the_system_message() -> None:
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        told = tell_tools([*system, ASKED], [ADD, SUB])
        assert [message["role"] for message in told] == ["system", "user"]
        assert told[1] == ASKED
        text = told[0]["content"]
        assert text.startswith("Be brief.\n\n# Tools" if system else "# Tools")
        (lines,) = re.findall(r"<tools>\n(.*)\n</tools>", text, re.S)
        assert [json.loads(line) for line in lines.split("\n")] == [ADD, SUB]
        assert "a − b" in text


def test_calls_and_results_become_text() -> None:
    other = {**CALL, "function": {"name": "sub", "arguments": {"b": 'a "quote"'}}}
    broken = {**CALL, "function": {"name": "sub", "arguments": '{"b": '}}
    told = tell_tools(
        [
            ASKED,
            {"role": "assistant", "content": "I add.", "tool_calls": [CALL, other]},
            {"role": "tool", "tool_call_id": "call_1", "content": "3"},
            {"role": "tool", "tool_call_id": "call_2", "content": "4"},
            {"role": "assistant", "content": None, "tool_calls": [broken]},
            {"role": "tool", "tool_call_id": "call_3", "content": "5"},
            {"role": "user", "content": "Thanks."},
        ],
        [],
    )
    assert [message["role"] for message in told] == [
        *("user", "assistant", "user", "assistant", "user", "user")
    ]
    calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", told[1]["content"])
    assert told[1]["content"].startswith("I add.\n<tool_call>")
    assert [json.loads(call) for call in calls] == [
        {"name": "add", "arguments": {"a": 1}},
        {"name": "sub", "arguments": {"b": 'a "quote"'}},
    ]
    assert told[2]["content"] == (
        "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    )
    assert json.loads(told[3]["content"].split("\n")[1])["arguments"] == '{"b": '
    assert told[4]["content"] == "<tool_response>\n5\n</tool_response>"


def test_other_messages_stay_as_they_are() -> None:
    messages = [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant"}]
    assert tell_tools(messages, []) == messages


def test_a_model_is_shown_its_own_format() -> None:
    form = DeepSeekFormat(frozenset(), fenced=True)
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    told = describe_tools([ASKED, called], [ADD], form)
    assert told[1:] == [ASKED, called]
    assert told[0]["content"].endswith(form.example)


def test_arguments_that_are_no_json_stay_text() -> None:
    for arguments in ("[" * 100_000, '{"a": '):
        call = {**CALL, "function": {"name": "add", "arguments": arguments}}
        (told,) = tell_tools([{"role": "assistant", "tool_calls": [call]}], [])
        assert json.loads(told["content"].split("\n")[1])["arguments"] == arguments
