"""The endpoints that a batch's lines may name: what they ask, and the body of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from deepmnn.api.llm import LLM
from deepmnn.api.prompts import Prompt
from deepmnn.serve.protocols.chat import ChatBody, ChatRequest
from deepmnn.serve.protocols.completions import CompletionBody, CompletionRequest
from deepmnn.serve.protocols.responses.answer import ResponseBody
from deepmnn.serve.protocols.responses.request import ResponsesRequest
from deepmnn.serve.protocols.sse import Whole
from deepmnn.text.sampling_params import SamplingParams


class Asked(NamedTuple):
    """What a body asks: prompts, how to answer them, and what collects the answers."""

    prompts: Sequence[Prompt]
    params: SamplingParams
    collected: Whole


def _chat(body: object, name: str, model: LLM) -> Asked:
    asked = ChatRequest.read(body)
    params = asked.params(model.generation_config.params)
    return Asked([asked.prompt()], params, ChatBody(asked, name, model.tokenizer))


def _completion(body: object, name: str, model: LLM) -> Asked:
    asked = CompletionRequest.read(body)
    params = asked.params(model.generation_config.params)
    collected = CompletionBody(asked, name, model.tokenizer)
    return Asked(asked.prompts(model.tokenizer), params, collected)


def _responses(body: object, name: str, model: LLM) -> Asked:
    asked = ResponsesRequest.read(body)
    params = asked.params(model.generation_config.params)
    return Asked([asked.prompt()], params, ResponseBody(asked, name, model.tokenizer))


ENDPOINTS: Mapping[str, Callable[[Any, str, LLM], Asked]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _responses,
}
"""By path; each takes a body, the model's name and the model. Raises RequestError."""
