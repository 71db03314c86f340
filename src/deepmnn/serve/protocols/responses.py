"""/v1/responses: OpenAI's Responses API without memory: each request has the whole conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from deepmnn.api.chat import Chat
from deepmnn.engine.completion import Chunk
from deepmnn.errors import RequestError, shown
from deepmnn.serve.body import Body
from deepmnn.serve.errors import OPENAI_ERRORS, RefusedError
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.protocols.blocks import Block, Blocks
from deepmnn.serve.protocols.logprobs import chat_logprobs
from deepmnn.serve.protocols.sampling import sampled
from deepmnn.serve.protocols.sse import STREAMED, EventStream, encode, new_id, respond
from deepmnn.serve.protocols.thinking import Effort, chat_thinking
from deepmnn.serve.protocols.tools import ToolFields, chat_tools
from deepmnn.serve.protocols.turns import Turns
from deepmnn.serve.protocols.usage import Usage
from deepmnn.text.sampling_params import MOST_LOGPROBS, SamplingParams
from deepmnn.text.tokenizer import Tokenizer

router = APIRouter(responses=OPENAI_ERRORS, tags=["OpenAI"])

MOST_ITEMS = 100_000
_LOGPROBS = "message.output_text.logprobs"


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """A JSON object of any form."""

    type: Literal["json_object"]


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


class _Facts:
    """What both forms of an answer need: the response, and the items in it."""

    def __init__(self, asked: ResponsesRequest, name: str, tokenizer: Tokenizer) -> None:
        self.id, self.name, self.created = new_id("resp_"), name, int(time.time())
        self.asked, self.tokenizer = asked, tokenizer
        self.usage, self.blocks = Usage(), Blocks()
        self.logprobs: list[dict[str, Any]] = []
        self._ids: dict[int, tuple[str, str]] = {}
        self._last: Chunk | None = None

    def add(self, chunk: Chunk) -> Iterator[tuple[Block, str]]:
        """Takes a chunk; see `Blocks.add`."""
        self._last = chunk
        self.usage.add(chunk)
        if chunk.logprobs and chunk.completion_tokens > chunk.reasoning_tokens:
            self.logprobs += chat_logprobs(self.tokenizer, chunk.logprobs)
        return self.blocks.add(chunk)

    @property
    def status(self) -> str:
        """What has become of an answer that has ended."""
        cut = self._last is not None and self._last.finish_reason == "length"
        return "incomplete" if cut else "completed"

    def ids(self, block: Block) -> tuple[str, str]:
        """An item's name, and a call's."""
        if block.index not in self._ids:
            prefix = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}[block.kind]
            self._ids[block.index] = new_id(prefix), new_id("call_")
        return self._ids[block.index]

    def item(self, block: Block, status: str) -> dict[str, Any]:
        """A block as an item; one that has just begun is empty."""
        id, call_id = self.ids(block)
        begun = status == "in_progress"
        if block.kind == "call":
            named = {"call_id": call_id, "name": block.name, "arguments": block.text}
            return {"id": id, "type": "function_call", "status": status, **named}
        content = [] if begun else [self.part(block)]
        if block.kind == "reasoning":
            thought = {"summary": [], "content": content, "encrypted_content": None}
            return {"id": id, "type": "reasoning", "status": status, **thought}
        said = {"role": "assistant", "content": content}
        return {"id": id, "type": "message", "status": status, **said}

    def part(self, block: Block) -> dict[str, Any]:
        """The content of a block that is no call."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        logprobs = self.logprobs if self.asked.wants_logprobs() else []
        text: dict[str, Any] = {"type": "output_text", "text": block.text}
        return text | {"annotations": [], "logprobs": logprobs if block.text else []}

    def items(self) -> list[dict[str, Any]]:
        """All items of an answer that has ended; only the last one can be cut."""
        made = self.blocks.made
        return [self.item(b, self.status if b is made[-1] else "completed") for b in made]

    def response(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        """The response; with its items and its usage when it has ended."""
        asked, ended = self.asked, status != "in_progress"
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        reasoning = asked.reasoning or Reasoning()
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": error,
            "incomplete_details": cut,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.name,
            "output": self.items() if ended else [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": reasoning.model_dump(),
            "store": False,
            "temperature": asked.temperature,
            "text": self._text(),
            "tool_choice": asked.tool_choice or "auto",
            "tools": [{"strict": None, "parameters": {}, **tool} for tool in asked.functions()],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": self.usage.responses() if ended else None,
            "metadata": asked.metadata or {},
        }

    def _text(self) -> dict[str, Any]:
        format = self.asked.text.format if self.asked.text else None
        return {"format": (format or TextFormat(type="text")).model_dump(by_alias=True)}


class ResponseBody:
    """An answer as one object; name: of the model."""

    def __init__(self, asked: ResponsesRequest, name: str, tokenizer: Tokenizer) -> None:
        self._facts = _Facts(asked, name, tokenizer)

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        for _ in self._facts.add(chunk):
            pass

    def body(self) -> dict[str, Any]:
        """A `response`."""
        return self._facts.response(self._facts.status)


_DELTAS = {
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


class ResponseEvents:
    """An answer as events, each with its number; name: of the model."""

    def __init__(self, asked: ResponsesRequest, name: str, tokenizer: Tokenizer) -> None:
        self._facts = _Facts(asked, name, tokenizer)
        self._number = 0
        self._open: Block | None = None
        self._head = ""
        self._told = 0  # log probabilities that have been sent

    def begin(self) -> str:
        """The response, without anything in it."""
        response = self._facts.response("in_progress")
        return self._event("response.created", response=response) + self.ping()

    def ping(self) -> str:
        """That it is still in progress: a comment would not keep every client waiting."""
        response = self._facts.response("in_progress")
        return self._event("response.in_progress", response=response)

    def chunk(self, chunk: Chunk) -> str:
        """The events of the next chunk."""
        events = []
        for block, text in self._facts.add(chunk):
            events.append(self._delta(block, text) if text else self._begin(block))
        return "".join(events)

    def end(self) -> str:
        """Closes the last item and the response."""
        status = self._facts.status
        closed = self._close(status)
        return closed + self._event(f"response.{status}", response=self._facts.response(status))

    def error(self, body: dict[str, Any]) -> str:
        """The response, failed."""
        error = body["error"]
        told = {"code": error["code"] or "server_error", "message": error["message"]}
        return self._event("response.failed", response=self._facts.response("failed", told))

    def _event(self, kind: str, **fields: Any) -> str:
        number, self._number = self._number, self._number + 1
        data = encode({"type": kind, "sequence_number": number, **fields})
        return f"event: {kind}\ndata: {data}\n\n"

    def _begin(self, block: Block) -> str:
        events = self._close("completed")
        self._open = block
        kind, place = _DELTAS[block.kind], self._place(block)
        self._head = f'event: {kind}\ndata: {{"type":"{kind}",{encode(place)[1:-1]}'
        item = self._facts.item(block, "in_progress")
        added = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "call":
            part = self._facts.part(block)
            added += self._event("response.content_part.added", **place, part=part)
        return events + added

    def _place(self, block: Block) -> dict[str, Any]:
        """Where a part of an answer stands."""
        place = {"item_id": self._facts.ids(block)[0], "output_index": block.index}
        return place if block.kind == "call" else place | {"content_index": 0}

    def _delta(self, block: Block, text: str) -> str:
        number, self._number = self._number, self._number + 1
        logprobs = ""
        if block.kind == "text":
            given = self._facts.logprobs[self._told :]
            self._told += len(given)
            logprobs = f',"logprobs":{encode(given)}'
        return f'{self._head},"sequence_number":{number},"delta":{encode(text)}{logprobs}}}\n\n'

    def _close(self, status: str) -> str:
        """The events that end the item that is open, if one is."""
        block, self._open = self._open, None
        if block is None:
            return ""
        place, facts = self._place(block), self._facts
        if block.kind == "call":
            done = self._event(
                "response.function_call_arguments.done",
                **place,
                name=block.name,
                arguments=block.text,
            )
        else:
            part = facts.part(block)
            kind = _DELTAS[block.kind].replace(".delta", ".done")
            more = {"logprobs": part["logprobs"]} if block.kind == "text" else {}
            done = self._event(kind, **place, text=block.text, **more)
            done += self._event("response.content_part.done", **place, part=part)
        item = facts.item(block, status)
        return done + self._event("response.output_item.done", output_index=block.index, item=item)


@router.post("/v1/responses", response_model=None, responses=STREAMED)
async def create(asked: ResponsesRequest, request: Request, service: Ready) -> Response:
    """Answers a conversation: as a `response`, or as a stream of events."""
    model = service.model
    answer = await service.ask(asked.prompt(), asked.params(model.generation_config.params))
    if asked.stream:
        return EventStream(answer, ResponseEvents(asked, service.name, model.tokenizer))
    return await respond(request, answer, ResponseBody(asked, service.name, model.tokenizer))


@router.get("/v1/responses/{id}", status_code=404)
@router.delete("/v1/responses/{id}", status_code=404)
async def find(id: str) -> None:
    """Refused: nothing is kept."""
    raise RefusedError(
        404,
        f"there is no response {shown(id)}: this server keeps none; expected to be kept by the "
        "client, as with store: false",
        code="not_found",
    )
