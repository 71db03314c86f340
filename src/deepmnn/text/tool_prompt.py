"""Tools for a model whose chat template knows none: told of in the messages themselves.

Where the template writes calls, the model has a format of its own, and is shown that one
(DeepSeek V3, R1 and V3.1). For others the words are those of the Hermes format
(NousResearch/Hermes-Function-Calling), which many small models have been trained with. Calls in
it are read by `tool_calls.hermes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from deepmnn.text.chat_template import Message
from deepmnn.text.tool_calls.format import ToolFormat
from deepmnn.text.tool_calls.hermes import HermesFormat

_HEAD = """\
# Tools

You may call one or more of these functions to answer. Each line is the JSON schema of one:
<tools>
"""

_TAIL = """
</tools>

To call a function, answer with its name and its arguments as JSON in this form:
"""


def describe_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], form: ToolFormat
) -> list[Message]:
    """The conversation with the tools at the end of its system message, and how to call them."""
    described = _HEAD + "\n".join(map(_json, tools)) + _TAIL + form.example
    if messages and messages[0].get("role") == "system":
        said = "\n\n".join([*_said(messages[0]), described])
        return [{**messages[0], "content": said}, *messages[1:]]
    return [{"role": "system", "content": described}, *messages]


def tell_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation in plain messages: system, user and assistant, all of text.

    The tools stand at the end of the system message, earlier calls in the assistant's text, their
    results in messages of the user. Messages that need none of that stay as they are.
    """
    told: list[Message] = []
    for message in messages:
        if message.get("role") == "tool":
            told = _answered(told, f"<tool_response>\n{_text(message)}\n</tool_response>")
        elif message.get("tool_calls"):
            calls = [_call(call) for call in message["tool_calls"]]
            told.append({"role": "assistant", "content": "\n".join([*_said(message), *calls])})
        else:
            told.append(message)
    return describe_tools(told, tools, HermesFormat(frozenset())) if tools else told


def _answered(told: list[Message], result: str) -> list[Message]:
    """Results of one answer's calls stand in one message: templates want roles to alternate."""
    last = told[-1] if told else {}
    if last.get("role") == "user" and _text(last).startswith("<tool_response>"):
        return [*told[:-1], {"role": "user", "content": f"{_text(last)}\n{result}"}]
    return [*told, {"role": "user", "content": result}]


def _call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI's API has them
        # What the model wrote was no JSON: it sees what it wrote.
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    made = _json({"name": function.get("name"), "arguments": arguments})
    return f"<tool_call>\n{made}\n</tool_call>"


def _said(message: Message) -> list[str]:
    text = _text(message)
    return [text] if text else []


def _text(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
