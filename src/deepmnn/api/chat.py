"""A conversation with what its model is given besides the messages: tools, and how to think."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deepmnn.errors import RequestError, shown
from deepmnn.text.chat_template import Message

ToolChoice = Literal["auto", "none", "required"]

_TAKEN = {"self", "messages", "tools", "special_tokens", "add_generation_prompt"}
"""What the chat template is given in any case."""


@dataclass(frozen=True)
class Chat:
    """A prompt: messages and, as OpenAI's API names them, tools.

    Attributes:
        messages: the conversation, oldest first.
        tools: what the model may call, each {"type": "function", "function": {"name": ...,
            "description": ..., "parameters": a JSON schema}}.
        tool_choice: "auto" leaves it to the model, "none" gives it no tools, "required" has it
            call one: its answer is constrained to calls that fit the schemas.
        tool_name: this one must be called; tool_choice becomes "required".
        parallel_tool_calls: with "required": whether one answer may have several calls.
        thinking: whether to reason before answering; None is what the chat template does. Where
            the template opens the reasoning in any case, False closes it at once.
        variables: more names for the chat template.

    Raises RequestError when a value is impossible.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    thinking: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tool_choice not in get_args(ToolChoice):
            expected = " or ".join(map(repr, get_args(ToolChoice)))
            raise RequestError(f"tool_choice is {shown(self.tool_choice)}", expected)
        taken = _TAKEN & self.variables.keys()
        if taken:
            raise RequestError(
                f"a variable of the chat template has the name {shown(min(taken))}",
                "a name that the template does not get otherwise",
            )
        if self.tool_name is not None and self.tool_choice == "auto":
            object.__setattr__(self, "tool_choice", "required")
        names = [_name(index, tool) for index, tool in enumerate(self.tools)]
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise RequestError(f"two tools have the name {shown(twice)}", "a name for each")
        if self.tool_choice == "required" and not names:
            raise RequestError("a tool must be called, and there are no tools", "tools")
        if self.tool_name is not None and self.tool_name not in names:
            raise RequestError(
                f"the tool {shown(self.tool_name)} must be called", f"one of {shown(names)}"
            )
        if self.tool_name is not None and self.tool_choice == "none":
            raise RequestError(
                f"tool_choice is 'none', and {shown(self.tool_name)} must be called", "one of them"
            )

    @property
    def offered(self) -> list[Mapping[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else list(self.tools)

    @property
    def demanded(self) -> list[Mapping[str, Any]]:
        """The tools of which it must call one; none where it may do as it likes."""
        if self.tool_choice != "required":
            return []
        return [t for t in self.tools if self.tool_name in (None, t["function"]["name"])]


def _name(index: int, tool: object) -> str:
    """A tool's name. Raises RequestError when it is no tool."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise RequestError(
            f"tool {index} is {shown(tool)}",
            'a function such as {"type": "function", "function": {"name": "add"}}',
        )
    parameters = function.get("parameters") if isinstance(function, Mapping) else None
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"the parameters of {shown(name)} are {shown(parameters)}", "a schema")
    return name
