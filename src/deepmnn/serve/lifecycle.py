"""What the server can do right now: loading → ready → draining."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import Depends, Request

from deepmnn.serve.errors import RefusedError
from deepmnn.serve.metrics import Metrics
from deepmnn.serve.service import Service

Status = Literal["loading", "ready", "draining"]


class Lifecycle:
    """Where a server is between its start and its end. All methods are called on its event loop.

    Attributes:
        name: of the model.
        metrics: of what is asked.
        current: the service; None while the model loads.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.metrics = Metrics(name)
        self.current: Service | None = None
        self._deadline: float | None = None

    @property
    def status(self) -> Status:
        """The word that /health says: "draining" from the first signal to end."""
        if self._deadline is not None:
            return "draining"
        return "loading" if self.current is None else "ready"

    def ready(self, service: Service) -> None:
        """The model is loaded: requests are answered from now on."""
        self.current = service
        self.metrics.attach(service)

    def service(self) -> Service:
        """What answers. Raises RefusedError (503) unless the status is "ready"."""
        if self.status == "draining":
            raise RefusedError(
                503,
                "the server is shutting down and takes no more requests. "
                "Ask another server, or this one when it is back.",
                headers={"Connection": "close"},
            )
        if self.current is None:
            raise RefusedError(
                503, "the model is still being loaded; expected a request after that. Try again."
            )
        return self.current

    def drain(self, seconds: float) -> None:
        """Takes no more requests; those that run have so long to end."""
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds

    def drained(self) -> bool:
        """Whether the server may end: nothing runs any more, or time is up and all is cancelled."""
        if self._deadline is None:
            return False
        if self.current is None or not self.current.active:
            return True
        if time.monotonic() < self._deadline:
            return False
        self.current.cancel_all()
        return True


def lifecycle_of(request: Request) -> Lifecycle:
    """The server's."""
    found: Lifecycle = request.app.state.lifecycle
    return found


async def _service(request: Request) -> Service:
    return lifecycle_of(request).service()


Ready = Annotated[Service, Depends(_service)]
"""A parameter of an endpoint that needs the model; without one the client gets status 503."""
