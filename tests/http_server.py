"""A server on loopback, in a thread of this process, and what it asks of its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from deepmnn import LLM
from deepmnn.engine.request import Request
from deepmnn.serve.log import Log
from deepmnn.serve.options import ServeOptions
from deepmnn.serve.run import Server
from deepmnn.serve.service import Service


@dataclass
class Served:
    """url: without a path. asked: every request that the engine got."""

    url: str
    model: LLM
    service: Service
    asked: list[Request] = field(default_factory=list)

    def until_idle(self) -> None:
        """Waits until nothing runs."""
        self.until(lambda: not self.service.active)

    @staticmethod
    def until(true: Any) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.002)


@contextmanager
def serving(model: LLM, name: str = "tiny-r1") -> Iterator[Served]:
    with Server(ServeOptions(port=0), name, Log(StringIO())) as server:
        server.ready(model)
        lifecycle = server.app.state.lifecycle
        Served.until(lambda: lifecycle.current)
        made = Served(server.url, model, lifecycle.current)
        submit = model.driver.submit

        def watched(requests: list[Request]) -> None:
            made.asked += requests
            submit(requests)

        model.driver.submit = watched  # type: ignore[method-assign]
        try:
            yield made
        finally:
            model.driver.submit = submit  # type: ignore[method-assign]
