"""Leaves the interpreter while requests are unfinished; it must end, and quietly.

python exiting_child.py streams|daemons|dropped|exit|late
"""

import atexit

late: list = []
atexit.register(lambda: [use() for use in late])  # runs last, for it is the first
# ruff: noqa: E402

import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.engine.driver import Driver
from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Chunk, Event, Request, result_of
from deepmnn.engine.session import Session
from deepmnn.errors import RequestError
from deepmnn.text.sampling_params import SamplingParams


class SlowBackend(CpuBackend):
    """In the middle of a step whenever the interpreter ends."""

    def step(self, *arguments):
        time.sleep(0.05)
        return super().step(*arguments)


def stream(driver: Driver) -> Iterator[Chunk]:
    events: SimpleQueue[Event] = SimpleQueue()
    request = Request(driver.engine.sequence([1, 2], SamplingParams()), events.put)
    driver.submit([request])
    try:
        while True:
            yield result_of(events.get())
    finally:
        driver.cancel(request)


def consume(driver: Driver) -> None:
    try:
        for _ in stream(driver):
            pass
    except RequestError:
        pass


def use_late(driver: Driver) -> None:
    """After the threads have ended."""
    try:
        next(stream(driver))
    except RequestError as error:
        assert "exiting" in str(error)  # noqa: PT017
    else:
        print("an answer from beyond")


class Cycle:
    """Closes its session when all else is gone."""


def main(directory: str, way: str) -> None:
    global kept
    if way == "late":
        late.append(lambda: use_late(kept[0]))
    driver = Driver(Engine(SlowBackend(directory, threads=2), 4096, 4000))
    kept = [driver, *(stream(driver) for _ in range(3))]
    for item in kept[1:]:
        next(item)
    if way == "daemons":
        for _ in range(4):
            threading.Thread(target=consume, args=(driver,), daemon=True).start()
        time.sleep(0.1)
    cycle = Cycle()
    cycle.session, cycle.itself = Session(driver), cycle
    cycle.session.prefill([5, 6])
    if way == "dropped":
        kept = []
        del driver
    print("ready", flush=True)
    if way == "exit":
        for _ in stream(driver):
            sys.exit(0)


kept: list = []
if __name__ == "__main__":
    main(*sys.argv[1:])
