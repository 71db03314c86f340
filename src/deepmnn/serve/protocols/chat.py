"""/v1/chat/completions: OpenAI's Chat Completions API, with what DeepSeek and vLLM add."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from deepmnn.api.chat import Chat
from deepmnn.engine.completion import Chunk, Completion
from deepmnn.errors import RequestError
from deepmnn.serve.body import Body
from deepmnn.serve.errors import OPENAI_ERRORS
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.protocols.answer_format import AnyFormat, wanted_schema
from deepmnn.serve.protocols.logprobs import chat_logprobs
from deepmnn.serve.protocols.openai_events import OpenAIEvents, StreamOptions
from deepmnn.serve.protocols.sampling import Sampling, joined
from deepmnn.serve.protocols.sse import STREAMED, EventStream, encode, new_id, respond
from deepmnn.serve.protocols.thinking import Thinking
from deepmnn.serve.protocols.tools import ToolFields, chat_tools
from deepmnn.serve.protocols.usage import Usage
from deepmnn.text.chat_template import Message
from deepmnn.text.sampling_params import MOST_LOGPROBS, SamplingParams
from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls import ToolCallDelta

router = APIRouter(responses=OPENAI_ERRORS, tags=["OpenAI"])

MOST_MESSAGES = 10_000


class Function(Body):
    """What is called: a function's name, and its arguments as JSON text."""

    name: str
    arguments: str = "{}"


class Call(Body):
    """A call that the assistant has made."""

    id: str = ""
    type: str = "function"
    function: Function


class ChatMessage(Body):
    """A message of the conversation.

    content: text, or a list of parts of text. reasoning_content, reasoning: what an assistant
    thought before it; both names are taken. tool_calls: what it called. tool_call_id: which call a
    message of role "tool" answers.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Any] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    def message(self) -> dict[str, Any]:
        """As chat templates know it."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.role == "developer":
            made["role"] = "system"
        if self.name is not None:
            made["name"] = self.name
        if thought := self.reasoning_content or self.reasoning:
            made["reasoning_content"] = thought
        if self.tool_calls:
            made["tool_calls"] = [call.model_dump() for call in self.tool_calls]
            made["content"] = self.content or None  # templates ask whether there is one
        if self.tool_call_id is not None:
            made["tool_call_id"] = self.tool_call_id
        return made


class ChatRequest(Sampling, Thinking, ToolFields):
    """A conversation, and what is wanted of the answer."""

    model: str | None = Field(None, description="Any name: there is one model.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: AnyFormat | None = None
    functions: list[Any] | None = Field(None, description="Refused: the old form of tools.")
    modalities: list[str] | None = Field(None, description='At most ["text"].')

    def prompt(self) -> Chat:
        """The conversation. Raises RequestError."""
        if self.functions:
            raise RequestError("the request has functions", "tools, which came in their place")
        if self.modalities and self.modalities != ["text"]:
            raise RequestError(f"modalities is {self.modalities!r:.80}", "['text']")
        return Chat(
            with_one_system([message.message() for message in self.messages]),
            **chat_tools(self.tools or (), self.tool_choice, self.parallel_tool_calls),
            **self.asked(),
        )

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """How to answer; recommended: by the model. Raises RequestError."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(
                f"top_logprobs is {self.top_logprobs} without logprobs", "logprobs: true with it"
            )
        return self.sampling(
            recommended,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            json_schema=wanted_schema(self.response_format),
        )


def with_one_system(messages: list[Message]) -> list[Message]:
    """The same conversation with its first system messages as one: some templates take one only."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    texts = [m["content"] for m in messages[:count]]
    if count < 2 or not all(isinstance(text, str) for text in texts):
        return messages
    return [{"role": "system", "content": joined(texts)}, *messages[count:]]


class _Facts:
    """What both forms of an answer need."""

    def __init__(self, asked: ChatRequest, name: str, tokenizer: Tokenizer) -> None:
        self.asked, self.name, self.tokenizer = asked, name, tokenizer
        self.id, self.created = new_id("chatcmpl-"), int(time.time())
        self.usage = Usage()

    def head(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of this kind."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}


class ChatBody(_Facts):
    """Answers to a conversation as one object; name: of the model."""

    def __init__(self, asked: ChatRequest, name: str, tokenizer: Tokenizer) -> None:
        super().__init__(asked, name, tokenizer)
        self._answers: defaultdict[int, Completion] = defaultdict(Completion)

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        self.usage.add(chunk)
        self._answers[chunk.choice].add(chunk)

    def body(self) -> dict[str, Any]:
        """A `chat.completion`."""
        choices = [self._choice(index, self._answers[index]) for index in sorted(self._answers)]
        return self.head("chat.completion") | {
            "choices": choices,
            "usage": self.usage.openai(),
            "timings": self.usage.timings(),
        }

    def _choice(self, index: int, answer: Completion) -> dict[str, Any]:
        calls = [
            {
                "id": new_id("call_"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.tool_calls
        ]
        content = answer.text if answer.text or not calls else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if answer.reasoning and self.asked.include_reasoning is not False:
            message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
        if calls:
            message["tool_calls"] = calls
        logprobs = None
        if self.asked.logprobs:
            content_ = chat_logprobs(self.tokenizer, answer.logprobs)
            logprobs = {"content": content_, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": finish_reason(answer.finish_reason, bool(calls)),
        }


def finish_reason(reason: str | None, called: bool) -> str | None:
    """OpenAI's word for why an answer has ended."""
    return "tool_calls" if called and reason == "stop" else reason


class ChatEvents(OpenAIEvents):
    """Answers to a conversation as events; name: of the model."""

    def __init__(self, asked: ChatRequest, name: str, tokenizer: Tokenizer) -> None:
        facts = _Facts(asked, name, tokenizer)
        super().__init__(facts.head("chat.completion.chunk"), asked.stream_options, facts.usage)
        self._asked, self._tokenizer = asked, tokenizer
        self._begun: set[int] = set()
        self._calls: dict[int, int] = {}
        """Answer → how many calls it has begun."""
        self._reasons = asked.include_reasoning is not False

    def chunk(self, chunk: Chunk) -> str:
        """Events with what is new, and one with the reason to end."""
        self._usage.add(chunk)
        events = ""
        if chunk.choice not in self._begun:
            self._begun.add(chunk.choice)
            events = self._event(chunk, '"role":"assistant","content":""')
        delta = self._delta(chunk)
        if delta or (chunk.logprobs and self._asked.logprobs):
            events += self._event(chunk, delta, self._logprobs(chunk))
        if chunk.finish_reason:
            reason = encode(finish_reason(chunk.finish_reason, chunk.choice in self._calls))
            times = f',"timings":{encode(self._usage.timings())}'
            events += self._event(chunk, "", finish=reason, more=times)
        return events

    def _event(
        self,
        chunk: Chunk,
        delta: str,
        logprobs: str = "null",
        finish: str = "null",
        more: str = "",
    ) -> str:
        return self.event(
            f'"index":{chunk.choice},"delta":{{{delta}}},'
            f'"logprobs":{logprobs},"finish_reason":{finish}',
            more,
        )

    def _delta(self, chunk: Chunk) -> str:
        """The fields of `delta`, as JSON text without braces."""
        if not chunk.reasoning and not chunk.tool_calls:
            return f'"content":{encode(chunk.text)}' if chunk.text else ""
        fields = []
        if chunk.reasoning and self._reasons:
            text = encode(chunk.reasoning)
            fields.append(f'"reasoning_content":{text},"reasoning":{text}')
        if chunk.text:
            fields.append(f'"content":{encode(chunk.text)}')
        if chunk.tool_calls:
            calls = encode([self._call(chunk.choice, call) for call in chunk.tool_calls])
            fields.append(f'"tool_calls":{calls}')
        return ",".join(fields)

    def _call(self, choice: int, delta: ToolCallDelta) -> Mapping[str, Any]:
        """A part of a call; the first one names it."""
        if delta.index < self._calls.get(choice, 0):
            return {"index": delta.index, "function": {"arguments": delta.arguments}}
        self._calls[choice] = delta.index + 1
        function = {"name": delta.name, "arguments": delta.arguments}
        return {
            "index": delta.index,
            "id": new_id("call_"),
            "type": "function",
            "function": function,
        }

    def _logprobs(self, chunk: Chunk) -> str:
        if not self._asked.logprobs:
            return "null"
        content = chat_logprobs(self._tokenizer, chunk.logprobs)
        return encode({"content": content, "refusal": None})


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def create(asked: ChatRequest, request: Request, service: Ready) -> Response:
    """Answers a conversation: as a `chat.completion`, or as a stream of its chunks."""
    model = service.model
    answer = await service.ask(asked.prompt(), asked.params(model.generation_config.params))
    if asked.stream:
        return EventStream(answer, ChatEvents(asked, service.name, model.tokenizer))
    return await respond(request, answer, ChatBody(asked, service.name, model.tokenizer))
