"""How the Responses API answers: as one object, or as events with numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from deepmnn.engine.completion import Chunk
from deepmnn.serve.protocols.answer_format import TextFormat
from deepmnn.serve.protocols.blocks import Block, Blocks
from deepmnn.serve.protocols.logprobs import chat_logprobs
from deepmnn.serve.protocols.responses.request import Reasoning, ResponsesRequest
from deepmnn.serve.protocols.sse import encode, new_id
from deepmnn.serve.protocols.usage import Usage
from deepmnn.text.tokenizer import Tokenizer


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
        return {
            "format": (format or TextFormat(type="text")).model_dump(
                by_alias=True, exclude_none=True
            )
        }


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
