"""Tools as OpenAI's APIs name them: which the model is told of, and which it must call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deepmnn.errors import RequestError, shown
from deepmnn.serve.body import Body

_CHOICE = '"none", "auto", "required" or a function such as '


class ToolFields(Body):
    """tools: functions with a JSON schema. tool_choice: which of them is to be called."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


def chat_tools(
    tools: Sequence[Mapping[str, Any]], choice: object, parallel: bool | None
) -> dict[str, Any]:
    """The fields of a Chat that are about tools.

    Args:
        tools: as Chat takes them.
        choice: "none", "auto", "required", {"type": "function", ...} or {"type": "allowed_tools",
            ...}, each with its names as the Chat Completions or the Responses API has them.
        parallel: whether several may be called at once; None is yes.

    Raises RequestError.
    """
    mode, name = choice or "auto", None
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        if kind == "function":
            mode, name = "required", _named(choice)
        elif kind == "allowed_tools":
            facts = choice.get("allowed_tools", choice)
            mode, tools = _allowed(facts, tools)
        else:
            expected = _CHOICE + '{"type": "function", "function": {"name": "add"}}'
            raise RequestError(f"tool_choice is {shown(choice)}", expected)
    return {
        "tools": tuple(tools),
        "tool_choice": mode,
        "tool_name": name,
        "parallel_tool_calls": parallel is not False,
    }


def _allowed(
    facts: object, tools: Sequence[Mapping[str, Any]]
) -> tuple[str, list[Mapping[str, Any]]]:
    """The mode, and those of the tools that may be called. Raises RequestError."""
    listed = facts.get("tools") if isinstance(facts, Mapping) else None
    if not isinstance(facts, Mapping) or not isinstance(listed, list):
        raise RequestError(f"allowed_tools is {shown(facts)}", "an object with a list of tools")
    names = [_named(each) for each in listed]
    known = {_named(tool): tool for tool in tools}
    missing = [name for name in names if name not in known]
    if missing:
        raise RequestError(f"allowed_tools has {shown(missing[0])}", f"one of {shown([*known])}")
    return facts.get("mode", "auto"), [known[name] for name in names]


def _named(item: object) -> str:
    """The name in {"type": "function", "function": {"name": ...}} or {..., "name": ...}."""
    facts = item.get("function", item) if isinstance(item, Mapping) else None
    name = facts.get("name") if isinstance(facts, Mapping) else None
    if not isinstance(name, str):
        expected = 'one such as {"type": "function", "function": {"name": "add"}}'
        raise RequestError(f"a function is {shown(item)}", expected)
    return name
