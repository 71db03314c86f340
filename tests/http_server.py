"""A server on loopback, in a thread of this process, and what it asks of its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import anthropic
import openai

from deepmnn import LLM
from deepmnn.engine.request import Request
from deepmnn.serve.log import Log
from deepmnn.serve.options import ServeOptions
from deepmnn.serve.run import Server
from deepmnn.serve.service import Service


@dataclass
class Served:
    """A server, and the official clients of its APIs.

    url: without a path. asked: every request that the engine got. log: the server's.
    """

    url: str
    openai: openai.OpenAI
    anthropic: anthropic.Anthropic
    model: LLM
    service: Service
    log: StringIO
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
    log = StringIO()
    with ExitStack() as stack:
        server = stack.enter_context(Server(ServeOptions(port=0), name, Log(log)))
        server.ready(model)
        lifecycle = server.app.state.lifecycle
        Served.until(lambda: lifecycle.current)
        url, key = server.url, {"api_key": "-", "max_retries": 0}
        ours = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", **key))
        theirs = stack.enter_context(anthropic.Anthropic(base_url=url, **key))
        made = Served(url, ours, theirs, model, lifecycle.current, log)
        submit = model.driver.submit

        def watched(requests: list[Request]) -> None:
            made.asked += requests
            submit(requests)

        model.driver.submit = watched  # type: ignore[method-assign]
        try:
            yield made
        finally:
            model.driver.submit = submit  # type: ignore[method-assign]
