"""Earlier tool calls and their results, in the form in which a model's chat template writes them.

Templates differ: in some, a call's arguments are an object, in others JSON text; some leave out
calls that come with text, or fail without any. No list of models says which. Each template is
tried with a call whose words are known, and shows what it makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from deepmnn.errors import RequestError, TokenizerError, shown
from deepmnn.text.chat_template import Message, check_messages
from deepmnn.text.tokenizer import Tokenizer

_NAME, _KEY, _VALUE, _SAID, _RESULT = "find_owl", "owl_name", "Athene", "One moment.", "It sleeps."
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Finds an owl.",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "Its name."}},
            "required": [_KEY],
        },
    },
}
_CALL = {
    "id": "call_owl",
    "type": "function",
    "function": {"name": _NAME, "arguments": json.dumps({_KEY: _VALUE})},
}
_ASK = {"role": "user", "content": "Where is the owl?"}
_ANSWERED = {"role": "tool", "tool_call_id": "call_owl", "content": _RESULT}


@dataclass(frozen=True)
class _Form:
    """How an assistant's message with calls must look.

    as_text: whether arguments are JSON text, not an object. content: what takes the place of
    content that is not there. apart: whether text stands in a message of its own, before the calls.
    """

    as_text: bool
    content: str | None
    apart: bool = False


# First those that keep most: JSON text is written as the model wrote it.
_FORMS = [
    _Form(as_text, content, apart)
    for apart in (False, True)
    for as_text in (True, False)
    for content in ("", None)
]


@dataclass(frozen=True)
class _Abilities:
    """What a template does with tools; form: None when it writes no calls."""

    shows_tools: bool
    form: _Form | None


_known: WeakKeyDictionary[Tokenizer, _Abilities] = WeakKeyDictionary()


def takes_tools(tokenizer: Tokenizer) -> bool:
    """Whether a model's chat template tells it of tools, and of earlier calls.

    Renders the template a few times, once for each tokenizer.
    """
    return _abilities(tokenizer).shows_tools and writes_calls(tokenizer)


def writes_calls(tokenizer: Tokenizer) -> bool:
    """Whether a model's chat template writes earlier calls, whatever it says of tools.

    Those of DeepSeek V3 and R1 do, and tell of no tools.
    """
    return _abilities(tokenizer).form is not None


def tool_messages(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation with calls and results as the model's chat template writes them.

    Args:
        tokenizer: the model's.
        messages: as OpenAI's API has them: an assistant's `tool_calls`, whose arguments are JSON
            text (an object is taken, too), and results in messages of the role "tool" with a
            `tool_call_id`.

    Raises RequestError when a call has the wrong form, or the template writes no calls.
    """
    plain = check_messages(messages)
    made: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for index, message in enumerate(plain):
        if message["role"] == "assistant" and message.get("tool_calls"):
            calls = _calls(index, message["tool_calls"])
            names |= {call["id"]: call["function"]["name"] for call in calls if "id" in call}
            made += _with_calls(message, calls, _form(tokenizer))
        elif message["role"] == "assistant":
            message.pop("tool_calls", None)  # an empty list opens a block in some templates
            made.append({**message, "content": message.get("content") or ""})
        elif message["role"] == "tool":
            made.append(_result(message, names))
        else:
            made.append(message)
    return made


def _calls(index: int, calls: object) -> list[dict[str, Any]]:
    """With all fields that templates look for. Raises RequestError."""
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        fields = call if isinstance(call, dict) else {}
        function = fields.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(
                f"a tool call of message {index} is {shown(call)}",
                '{"id": ..., "type": "function", "function": {"name": ..., "arguments": JSON}}',
            )
        whole = {**function, "arguments": function.get("arguments") or "{}"}
        made.append({**fields, "type": "function", "function": whole})
    return made


def _with_calls(
    message: Mapping[str, Any], calls: list[dict[str, Any]], form: _Form
) -> list[dict[str, Any]]:
    """An assistant's message with calls; two, where text must stand apart."""
    formed = []
    for call in calls:
        arguments = call["function"]["arguments"]
        made = _as_text(arguments) if form.as_text else _as_object(arguments)
        formed.append({**call, "function": {**call["function"], "arguments": made}})
    content = message.get("content")
    with_calls = {**message, "content": content or form.content, "tool_calls": formed}
    if not content or not form.apart:
        return [with_calls]
    text = {key: value for key, value in message.items() if key != "tool_calls"}
    alone = {"role": message["role"], "content": form.content, "tool_calls": formed}
    return [text, alone]


def _result(message: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """With the name of the tool, which some templates want."""
    name = names.get(str(message.get("tool_call_id")))
    named = {"name": name} if name is not None else {}
    return {**named, **message, "content": message.get("content") or ""}


def _as_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _as_object(arguments: object) -> object:
    """What is no JSON object becomes the only argument, as in DeepSeek's own encoder (V4)."""
    if not isinstance(arguments, str):
        return arguments
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def _form(tokenizer: Tokenizer) -> _Form:
    form = _abilities(tokenizer).form
    if form is None:
        raise RequestError(
            "the conversation has tool calls, which this model's chat template does not write",
            "messages of text",
            "Say in text what was called and what it gave.",
        )
    return form


def _abilities(tokenizer: Tokenizer) -> _Abilities:
    found = _known.get(tokenizer)
    if found is None:
        prompt = _rendered(tokenizer, [_ASK], tools=[_TOOL])
        forms = _FORMS if prompt else ()
        form = next((form for form in forms if _writes_calls(tokenizer, form)), None)
        found = _known[tokenizer] = _Abilities(_NAME in prompt, form)
    return found


def _writes_calls(tokenizer: Tokenizer, form: _Form) -> bool:
    """Whether a call in this form is there, with the text beside it and its result."""
    for said in (None, _SAID):
        message = {"role": "assistant", "content": said, "tool_calls": [_CALL]}
        calls = _with_calls(message, _calls(1, [_CALL]), form)
        text = _rendered(tokenizer, [_ASK, *calls, _result(_ANSWERED, {"call_owl": _NAME})])
        if not all(part in text for part in (_NAME, _KEY, _VALUE, _RESULT, said or "")):
            return False
        # JSON within a string of JSON; an object, or nothing, as Python writes it.
        if any(wrong in text for wrong in (f'\\"{_KEY}', f"'{_KEY}'", "None")):
            return False
    return True


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message], **variables: Any) -> str:
    """The prompt; "" where the template fails."""
    try:
        return tokenizer.apply_chat_template(messages, **variables)
    except TokenizerError:
        return ""
