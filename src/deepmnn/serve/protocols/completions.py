"""/v1/completions: OpenAI's Completions API, which continues text."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from deepmnn.api.prompts import Prompt
from deepmnn.engine.completion import Chunk, Completion
from deepmnn.errors import RequestError
from deepmnn.serve.errors import OPENAI_ERRORS
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.protocols.answer_format import AnyFormat, wanted_schema
from deepmnn.serve.protocols.logprobs import TextLogprobs
from deepmnn.serve.protocols.openai_events import OpenAIEvents, StreamOptions
from deepmnn.serve.protocols.sampling import Sampling
from deepmnn.serve.protocols.sse import STREAMED, EventStream, encode, new_id, respond
from deepmnn.serve.protocols.usage import Usage
from deepmnn.text.fim import fim_prompt
from deepmnn.text.sampling_params import MOST_ANSWERS, MOST_LOGPROBS, SamplingParams
from deepmnn.text.tokenizer import Tokenizer

router = APIRouter(responses=OPENAI_ERRORS, tags=["OpenAI"])

DEFAULT_TOKENS = 16
"""OpenAI's: so long is an answer when max_tokens is not given."""

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]
Rows = Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]


class CompletionRequest(Sampling):
    """Text that is to be continued, and how.

    prompt: text, token ids, or a list of either. suffix: what comes behind the answer, for models
    that fill in the middle. echo: puts the prompt in front of the answer.
    """

    model: str | None = Field(None, description="Any name: there is one model.")
    prompt: str | Texts | TokenIds | Rows
    suffix: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None
    response_format: AnyFormat | None = None
    best_of: int | None = Field(None, ge=1, le=MOST_ANSWERS)

    def prompts(self, tokenizer: Tokenizer) -> Sequence[Prompt]:
        """What is to be continued, one by one. Raises RequestError."""
        given = self._given()
        if len(given) * (self.n or 1) > MOST_ANSWERS:
            raise RequestError(
                f"{len(given)} prompts with {self.n} answers each are asked for",
                f"at most {MOST_ANSWERS} answers in one request",
            )
        if not self.suffix:
            return given
        texts = [each for each in given if isinstance(each, str)]
        if len(texts) < len(given):
            raise RequestError("there is a suffix, and the prompt is token ids", "text")
        return [fim_prompt(tokenizer, text, self.suffix) for text in texts]

    def params(self, recommended: SamplingParams) -> SamplingParams:
        """How to answer; recommended: by the model. Raises RequestError."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise RequestError(f"best_of is {self.best_of}", "n, or nothing: all answers are given")
        if self.echo and self.logprobs is not None:
            raise RequestError(
                "echo is asked for together with logprobs",
                "one of them: a prompt's own tokens get no log probabilities",
            )
        tokens = self.max_tokens or DEFAULT_TOKENS
        return self.sampling(
            recommended,
            max_tokens=tokens,
            logprobs=self.logprobs,
            split_reasoning=False,
            json_schema=wanted_schema(self.response_format),
        )

    def echoed(self, tokenizer: Tokenizer) -> list[str]:
        """What stands in front of the answers to each prompt."""
        given = self._given()
        if not self.echo:
            return [""] * len(given)
        return [each if isinstance(each, str) else tokenizer.decode(each) for each in given]

    def _given(self) -> list[str | list[int]]:
        given: Any = self.prompt
        one = isinstance(given, str) or isinstance(given[0], int)
        return [given] if one else list(given)


class _Facts:
    """What both forms of an answer say first."""

    def __init__(self, asked: CompletionRequest, name: str, tokenizer: Tokenizer) -> None:
        self.asked, self.tokenizer = asked, tokenizer
        self.usage = Usage()
        self.echoed = asked.echoed(tokenizer)
        self.head: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }

    def index(self, chunk: Chunk) -> int:
        """An answer's place among all."""
        return chunk.index * (self.asked.n or 1) + chunk.choice


class CompletionBody(_Facts):
    """Answers as one object; name: of the model."""

    def __init__(self, asked: CompletionRequest, name: str, tokenizer: Tokenizer) -> None:
        super().__init__(asked, name, tokenizer)
        self._answers: defaultdict[int, Completion] = defaultdict(Completion)

    def add(self, chunk: Chunk) -> None:
        """Takes the next chunk."""
        self.usage.add(chunk)
        self._answers[self.index(chunk)].add(chunk)

    def body(self) -> dict[str, Any]:
        """A `text_completion`."""
        choices = [self._choice(index, self._answers[index]) for index in sorted(self._answers)]
        counts = {"usage": self.usage.openai(), "timings": self.usage.timings()}
        return self.head | {"choices": choices} | counts

    def _choice(self, index: int, answer: Completion) -> dict[str, Any]:
        logprobs = None
        if self.asked.logprobs is not None:
            logprobs = TextLogprobs(self.tokenizer).of(answer.logprobs)
        return {
            "index": index,
            "text": self.echoed[index // (self.asked.n or 1)] + answer.text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
        }


class CompletionEvents(OpenAIEvents):
    """Answers as events; name: of the model."""

    def __init__(self, asked: CompletionRequest, name: str, tokenizer: Tokenizer) -> None:
        self._facts = _Facts(asked, name, tokenizer)
        super().__init__(self._facts.head, asked.stream_options, self._facts.usage)
        self._logprobs: dict[int, TextLogprobs] = {}
        self._begun: set[int] = set()

    def chunk(self, chunk: Chunk) -> str:
        """An event with what is new; the last one of an answer has the reason to end."""
        facts = self._facts
        facts.usage.add(chunk)
        index, text = facts.index(chunk), chunk.text
        if index not in self._begun:
            self._begun.add(index)
            text = facts.echoed[chunk.index] + text
        if not text and not chunk.finish_reason and not chunk.logprobs:
            return ""
        logprobs = "null"
        if facts.asked.logprobs is not None:
            written = self._logprobs.setdefault(index, TextLogprobs(facts.tokenizer))
            logprobs = encode(written.of(chunk.logprobs))
        finish = encode(chunk.finish_reason) if chunk.finish_reason else "null"
        return self.event(
            f'"index":{index},"text":{encode(text)},"logprobs":{logprobs},"finish_reason":{finish}'
        )


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def create(asked: CompletionRequest, request: Request, service: Ready) -> Response:
    """Continues text: as a `text_completion`, or as a stream of them."""
    model = service.model
    params = asked.params(model.generation_config.params)
    answer = await service.ask_all(asked.prompts(model.tokenizer), params)
    if asked.stream:
        return EventStream(answer, CompletionEvents(asked, service.name, model.tokenizer))
    return await respond(request, answer, CompletionBody(asked, service.name, model.tokenizer))
