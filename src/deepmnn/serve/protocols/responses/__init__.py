"""/v1/responses: OpenAI's Responses API without memory: each request has the whole conversation."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from deepmnn.errors import shown
from deepmnn.serve.errors import OPENAI_ERRORS, RefusedError
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.protocols.responses.answer import ResponseBody, ResponseEvents
from deepmnn.serve.protocols.responses.request import ResponsesRequest
from deepmnn.serve.protocols.sse import STREAMED, EventStream, respond

router = APIRouter(responses=OPENAI_ERRORS, tags=["OpenAI"])


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
