"""/v1/models: the one model, as clients of several APIs read it."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from deepmnn.serve.errors import RefusedError
from deepmnn.serve.lifecycle import Ready
from deepmnn.serve.service import Service

router = APIRouter(tags=["models"])

_STARTED = int(time.time())


class Model(BaseModel):
    """A model: OpenAI's fields, vLLM's (`max_model_len`, `root`) and Anthropic's (the last ones).

    created, created_at: when this server started.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = _STARTED
    owned_by: str = "deepmnn"
    root: str
    parent: None = None
    max_model_len: int
    type: Literal["model"] = "model"
    display_name: str
    created_at: str = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_STARTED))


class Models(BaseModel):
    """The list of models.

    models: what Codex looks for beside `data`. It knows its own models only, and takes an empty
    list for a server of others.
    """

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[Model] = []
    first_id: str
    last_id: str
    has_more: Literal[False] = False


def _described(service: Service) -> Model:
    name, length = service.name, service.model.driver.engine.context_length
    return Model(id=name, root=name, display_name=name, max_model_len=length)


@router.get("/v1/models")
async def models(service: Ready) -> Models:
    """The model that this server runs."""
    model = _described(service)
    return Models(data=[model], first_id=model.id, last_id=model.id)


@router.get("/v1/models/{name:path}")
async def model(name: str, service: Ready) -> Model:
    """The model of that name."""
    if name != service.name:
        raise RefusedError(
            404,
            f"there is no model {name[:80]!r}; expected {service.name!r}, which runs here",
            code="model_not_found",
            param="model",
        )
    return _described(service)
