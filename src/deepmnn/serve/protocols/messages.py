"""/v1/messages: Anthropic's Messages API, and /v1/messages/count_tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from deepmnn.api.chat import Chat
from deepmnn.engine.completion import Chunk
from deepmnn.errors import RequestError, shown
from deepmnn.serve.body import Body
from deepmnn.serve.errors import ANTHROPIC_ERRORS
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.protocols.blocks import Block, Blocks
from deepmnn.serve.protocols.sampling import StopStrings, joined, sampled
from deepmnn.serve.protocols.sse import STREAMED, EventStream, encode, new_id, respond
from deepmnn.serve.protocols.thinking import Effort, ThinkingSwitch, chat_thinking
from deepmnn.serve.protocols.turns import Turns
from deepmnn.serve.protocols.usage import Usage
from deepmnn.text.sampling_params import SamplingParams

router = APIRouter(responses=ANTHROPIC_ERRORS, tags=["Anthropic"])

SIGNATURE = "deepmnn"
"""Of every block of thinking: clients send it back, and nothing depends on it."""


class TextBlock(Body):
    """A text."""

    type: Literal["text"]
    text: str


class InputMessage(Body):
    """A message: text, or a list of blocks.

    The user's are of type text and tool_result, the assistant's of type text, thinking,
    redacted_thinking and tool_use.
    """

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class OutputFormat(Body):
    """A JSON document of a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """effort: how long to think. format: what the answer is to look like."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class ToolChoice(Body):
    """auto: as the model likes; any: one of them; tool: the one with this name; none."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Body):
    """A conversation. Tools that Anthropic's servers run themselves are ignored."""

    model: str | None = Field(None, description="Any name: there is one model.")
    messages: list[InputMessage] = Field(min_length=1, max_length=100_000)
    system: str | list[TextBlock] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingSwitch | None = None
    output_config: OutputConfig | None = None

    def prompt(self) -> Chat:
        """The conversation. Raises RequestError."""
        if self.messages[-1].role == "assistant":
            raise RequestError(
                "the conversation ends with a message of the assistant",
                "one of the user: a beginning of the answer cannot be given",
            )
        turns = Turns()
        turns.system(_text(self.system))
        for message in self.messages:
            _add(turns, message)
        effort = self.output_config.effort if self.output_config else None
        thinking = chat_thinking(self.thinking, None)
        if effort is not None:
            thinking["variables"]["reasoning_effort"] = effort
        return Chat(turns.finished(), **self._tools(), **thinking)

    def _tools(self) -> dict[str, Any]:
        """The fields of a Chat that are about tools."""
        tools = [_tool(each) for each in self.tools or () if each.get("type") in (None, "custom")]
        choice = self.tool_choice or ToolChoice(type="auto")
        if choice.type == "tool" and choice.name is None:
            raise RequestError("tool_choice.name is missing", "the name of a tool")
        modes = {"any": "required", "tool": "required"}
        return {
            "tools": tools,
            "tool_choice": modes.get(choice.type, choice.type),
            "tool_name": choice.name if choice.type == "tool" else None,
            "parallel_tool_calls": not choice.disable_parallel_tool_use,
        }


class MessagesRequest(CountRequest):
    """A conversation, and what is wanted of the answer."""

    max_tokens: int = Field(ge=1)
    stop_sequences: StopStrings | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 31)

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """How to answer; recommended: by the model. Raises RequestError."""
        format = self.output_config.format if self.output_config else None
        return sampled(
            recommended,
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            json_schema=format.json_schema if format else None,
        )


def _text(given: str | Sequence[TextBlock] | None) -> str:
    return given if isinstance(given, str) else joined([block.text for block in given or ()])


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as OpenAI's API has it."""
    function = {
        "name": given.get("name"),
        "description": given.get("description", ""),
        "parameters": given.get("input_schema", {}),
    }
    return {"type": "function", "function": function}


def _add(turns: Turns, message: InputMessage) -> None:
    """Adds a message to a conversation. Raises RequestError."""
    content = message.content
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if message.role == "assistant":
        turns.next()
        for block in blocks:
            _add_said(turns, block)
        return
    parts = []
    for block in blocks:
        if block.get("type") == "tool_result":
            id, given = block.get("tool_use_id"), block.get("content") or ""
            if not isinstance(id, str) or not isinstance(given, str | list):
                raise _wrong(block, '{"type": "tool_result", "tool_use_id": ..., "content": ...}')
            turns.result(id, given)
        else:
            parts.append(block)
    if message.role == "system":
        turns.system(joined([part.get("text", "") for part in parts]))
    elif parts or not blocks:
        turns.user(content if isinstance(content, str) else parts)


def _add_said(turns: Turns, block: Mapping[str, Any]) -> None:
    """Adds a block of the assistant's. Raises RequestError."""
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        turns.said(block["text"])
    elif kind == "thinking" and isinstance(block.get("thinking"), str):
        turns.thought(block["thinking"])
    elif kind == "tool_use" and isinstance(block.get("name"), str):
        arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
        turns.called(str(block.get("id", "")), block["name"], arguments)
    elif kind != "redacted_thinking":
        raise _wrong(block, "one of type text, thinking, redacted_thinking or tool_use")


def _wrong(block: object, expected: str) -> RequestError:
    return RequestError(f"a block of content is {shown(block)}", expected)


class _Facts:
    """What both forms of an answer need."""

    def __init__(self, asked: MessagesRequest, name: str) -> None:
        self.name, self.limit = name, asked.max_tokens
        self.usage, self.blocks = Usage(), Blocks()
        self.hidden = asked.thinking is not None and asked.thinking.display == "omitted"

    def message(self, content: list[Any], end: Chunk | None) -> dict[str, Any]:
        """A message; end: the last chunk, when it has come."""
        return {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": self.name,
            "content": content,
            **(self.end(end) if end else {"stop_reason": None, "stop_sequence": None}),
            "usage": self.usage.anthropic(),
        }

    def end(self, chunk: Chunk) -> dict[str, Any]:
        """Why an answer has ended."""
        reason = "end_turn"
        if chunk.finish_reason == "length":
            full = chunk.completion_tokens < self.limit
            reason = "model_context_window_exceeded" if full else "max_tokens"
        elif chunk.stop_string:
            reason = "stop_sequence"
        elif self.blocks.called:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": chunk.stop_string or None}


class MessageBody:
    """An answer as one message; name: of the model."""

    def __init__(self, asked: MessagesRequest, name: str) -> None:
        self._facts = _Facts(asked, name)
        self._last: Chunk | None = None

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        self._facts.usage.add(chunk)
        for _ in self._facts.blocks.add(chunk):
            pass
        self._last = chunk

    def body(self) -> dict[str, Any]:
        """A `message`."""
        return self._facts.message([*map(self._block, self._facts.blocks.made)], self._last)

    def _block(self, block: Block) -> dict[str, Any]:
        if block.kind == "call":
            return _begun(block) | {"input": _input(block.text)}
        if block.kind == "text":
            return {"type": "text", "text": block.text}
        thinking = "" if self._facts.hidden else block.text
        return {"type": "thinking", "thinking": thinking, "signature": SIGNATURE}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call. Those that the model wrote wrong are there as text, for it to see
    when the tool refuses them.
    """
    try:
        found = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}


def _begun(block: Block) -> dict[str, Any]:
    """A block before there is anything in it."""
    if block.kind == "call":
        return {"type": "tool_use", "id": new_id("toolu_"), "name": block.name, "input": {}}
    if block.kind == "text":
        return {"type": "text", "text": ""}
    return {"type": "thinking", "thinking": "", "signature": ""}


_DELTAS = {
    "text": '{"type":"text_delta","text":',
    "reasoning": '{"type":"thinking_delta","thinking":',
    "call": '{"type":"input_json_delta","partial_json":',
}


class MessageEvents:
    """An answer as events; name: of the model."""

    def __init__(self, asked: MessagesRequest, name: str) -> None:
        self._facts = _Facts(asked, name)
        self._open: Block | None = None
        self._last: Chunk | None = None

    def begin(self) -> str:
        """Nothing: the message begins with the usage that the first chunk tells."""
        return ""

    def ping(self) -> str:
        """Says that the answer is still to come."""
        return _event("ping")

    def chunk(self, chunk: Chunk) -> str:
        """The events of the next chunk."""
        self._facts.usage.add(chunk)
        events = []
        if self._last is None:
            events += [self._message(), self.ping()]
        self._last = chunk
        for block, text in self._facts.blocks.add(chunk):
            if not text:
                events += [self._close(), self._start(block)]
            elif block.kind != "reasoning" or not self._facts.hidden:
                events.append(_delta(block.index, f"{_DELTAS[block.kind]}{encode(text)}}}"))
        return "".join(events)

    def end(self) -> str:
        """Closes the last block and the message."""
        events = [] if self._last else [self._message()]
        events.append(self._close())
        delta = self._facts.end(self._last) if self._last else {}
        usage = self._facts.usage.anthropic()
        events += [_event("message_delta", delta=delta, usage=usage), _event("message_stop")]
        return "".join(events)

    def error(self, body: dict[str, Any]) -> str:
        """The error."""
        return f"event: error\ndata: {encode(body)}\n\n"

    def _message(self) -> str:
        return _event("message_start", message=self._facts.message([], None))

    def _start(self, block: Block) -> str:
        self._open = block
        return _event("content_block_start", index=block.index, content_block=_begun(block))

    def _close(self) -> str:
        """The end of the block that is open, if one is."""
        block, self._open = self._open, None
        if block is None:
            return ""
        signed = ""
        if block.kind == "reasoning":
            signature = encode({"type": "signature_delta", "signature": SIGNATURE})
            signed = _delta(block.index, signature)
        return signed + _event("content_block_stop", index=block.index)


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {encode({'type': kind, **fields})}\n\n"


def _delta(index: int, delta: str) -> str:
    """delta: JSON text."""
    return (
        'event: content_block_delta\ndata: {"type":"content_block_delta",'
        f'"index":{index},"delta":{delta}}}\n\n'
    )


class TokenCount(BaseModel):
    """How many tokens the prompt has."""

    input_tokens: int


@router.post("/v1/messages", response_model=None, responses=STREAMED)
async def create(asked: MessagesRequest, request: Request, service: Ready) -> Response:
    """Answers a conversation: as a `message`, or as a stream of events."""
    params = asked.params(service.model.generation_config.params)
    answer = await service.ask(asked.prompt(), params)
    if asked.stream:
        return EventStream(answer, MessageEvents(asked, service.name))
    return await respond(request, answer, MessageBody(asked, service.name))


@router.post("/v1/messages/count_tokens")
async def count_tokens(asked: CountRequest, service: Ready) -> TokenCount:
    """How many tokens a conversation has."""
    return TokenCount(input_tokens=len(await service.tokens(asked.prompt())))
