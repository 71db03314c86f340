"""A server on loopback, in a thread of this process, for one model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from deepmnn import LLM
from deepmnn.serve.errors import add_handlers
from deepmnn.serve.lifecycle import Lifecycle
from deepmnn.serve.protocols import ROUTERS
from deepmnn.serve.service import Service


@dataclass
class Served:
    """url: without a path. service: what answers; other threads may read its numbers."""

    url: str
    service: Service

    def until_idle(self, seconds: float = 30) -> None:
        """Waits until nothing runs."""
        end = time.monotonic() + seconds
        while self.service.active:
            assert time.monotonic() < end, f"{self.service.active} answers are left"
            time.sleep(0.002)

    def until_busy(self, seconds: float = 30) -> None:
        """Waits until something runs."""
        end = time.monotonic() + seconds
        while not self.service.active:
            assert time.monotonic() < end, "nothing runs"
            time.sleep(0.002)


@contextlib.contextmanager
def serving(model: LLM, name: str = "tiny-r1") -> Iterator[Served]:
    service = Service(model, name)
    app = FastAPI()
    app.state.lifecycle = Lifecycle(service)
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        service.close()
