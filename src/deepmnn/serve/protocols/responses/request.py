"""What the Responses API asks: a conversation as a list of items."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from deepmnn.api.chat import Chat
from deepmnn.errors import RequestError, shown
from deepmnn.serve.body import Body
from deepmnn.serve.protocols.answer_format import ObjectFormat, TextFormat
from deepmnn.serve.protocols.sampling import sampled
from deepmnn.serve.protocols.thinking import Effort, chat_thinking
from deepmnn.serve.protocols.tools import ToolFields, chat_tools
from deepmnn.serve.protocols.turns import Turns
from deepmnn.text.sampling_params import MOST_LOGPROBS, SamplingParams

MOST_ITEMS = 100_000
_LOGPROBS = "message.output_text.logprobs"


class SchemaFormat(Body):
    """A JSON document of a schema; `name` and `strict` change nothing: it is always kept to."""

    type: Literal["json_schema"]
    name: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class TextConfig(Body):
    """What the answer is to look like."""

    format: (
        Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None


class Reasoning(Body):
    """effort: how long to reason; "none" is not at all."""

    effort: Effort | None = None
    summary: str | None = None


class ResponsesRequest(ToolFields):
    """A conversation as a list of items, and what is wanted of the answer.

    input: text, or items: messages, function calls and their outputs, reasoning. Others are
    ignored, and so are tools that are no functions.
    """

    model: str | None = Field(None, description="Any name: there is one model.")
    input: str | Annotated[list[dict[str, Any]], Field(max_length=MOST_ITEMS)]
    instructions: str | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    include: list[str] | None = None
    stream: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    previous_response_id: str | None = Field(None, description="Refused: nothing is kept.")
    conversation: Any = Field(None, description="Refused: nothing is kept.")
    prompt_: Any = Field(None, alias="prompt", description="Refused: nothing is kept.")
    background: bool | None = Field(None, description="At most false.")

    def prompt(self) -> Chat:
        """The conversation. Raises RequestError."""
        kept = {"conversation": self.conversation, "prompt": self.prompt_}
        for name, value in {"previous_response_id": self.previous_response_id, **kept}.items():
            if value is not None:
                raise RequestError(
                    f"{name} is {shown(value)}, and this server keeps nothing",
                    "the whole conversation in input",
                )
        if self.background:
            raise RequestError("background is true", "a request that waits for its answer")
        turns = Turns()
        turns.system(self.instructions or "")
        items = [{"role": "user", "content": self.input}]
        for index, item in enumerate(items if isinstance(self.input, str) else self.input):
            _add(turns, index, item)
        effort = self.reasoning.effort if self.reasoning else None
        tools = [_tool(each) for each in self.functions()]
        return Chat(
            turns.finished(),
            **chat_tools(tools, self._choice(), self.parallel_tool_calls),
            **chat_thinking(None, effort),
        )

    def functions(self) -> list[dict[str, Any]]:
        """The tools that are functions."""
        return [tool for tool in self.tools or () if tool.get("type") == "function"]

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """How to answer; recommended: by the model. Raises RequestError."""
        format = self.text.format if self.text else None
        schema = format.json_schema if isinstance(format, SchemaFormat) else None
        return sampled(
            recommended,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=(self.top_logprobs or 0) if self.wants_logprobs() else None,
            json_schema={"type": "object"} if isinstance(format, ObjectFormat) else schema,
        )

    def wants_logprobs(self) -> bool:
        """Whether the text is to have log probabilities."""
        return _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def _choice(self) -> object:
        """tool_choice without what is said of tools that are ignored."""
        choice = self.tool_choice
        if not isinstance(choice, Mapping):
            return choice
        if choice.get("type") == "allowed_tools":
            listed = choice.get("tools")
            tools = listed if isinstance(listed, list) else []
            kept = [t for t in tools if not isinstance(t, Mapping) or t.get("type") == "function"]
            return {**choice, "tools": kept}
        return choice if choice.get("type") == "function" else "auto"


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    """A function as the Chat Completions API has it."""
    names = ("name", "description", "parameters")
    function = {name: given[name] for name in names if given.get(name) is not None}
    return {"type": "function", "function": function}


def _add(turns: Turns, index: int, item: Mapping[str, Any]) -> None:
    """Adds an item to a conversation. Raises RequestError."""
    match item.get("type", "message"):
        case "message":
            _add_message(turns, index, item)
        case "reasoning":
            turns.thought("\n\n".join(_texts(item.get("content")) or _texts(item.get("summary"))))
        case "function_call":
            arguments = _word(index, item, "arguments")
            turns.called(_word(index, item, "call_id"), _word(index, item, "name"), arguments)
        case "custom_tool_call":
            given = json.dumps({"input": item.get("input")}, ensure_ascii=False)
            turns.called(_word(index, item, "call_id"), _word(index, item, "name"), given)
        case "function_call_output" | "custom_tool_call_output":
            turns.result(_word(index, item, "call_id"), _content(item.get("output")))
        case "item_reference":
            raise RequestError(
                f"item {index} of input refers to {shown(item.get('id'))}, and this server keeps "
                "nothing",
                "the item itself",
            )


def _add_message(turns: Turns, index: int, item: Mapping[str, Any]) -> None:
    content = item.get("content")
    if not isinstance(content, str | list):
        raise RequestError(f"item {index} of input is {shown(item)}", "a message with content")
    match item.get("role"):
        case "user":
            turns.user(_content(content))
        case "system" | "developer":
            turns.system("\n".join(_texts(content)))
        case "assistant":
            turns.said("\n".join(_texts(content)))
        case other:
            expected = "'user', 'assistant', 'system' or 'developer'"
            raise RequestError(f"the role of item {index} of input is {shown(other)}", expected)


def _word(index: int, item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{name} of item {index} of input is {shown(value)}", "a string")
    return value


def _texts(content: object) -> list[str]:
    """The texts in the content of an item."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    found = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return [text for text in found if isinstance(text, str)]


def _content(content: object) -> Any:
    """Content in the form of the Chat Completions API; what is no text stays as it is."""
    if not isinstance(content, list):
        return content
    texts = ("input_text", "output_text")
    return [
        {**part, "type": "text"} if isinstance(part, dict) and part.get("type") in texts else part
        for part in content
    ]
