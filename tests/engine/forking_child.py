"""Forks while other threads ask the model; parent and children go on, with the same answers.

    python forking_child.py DIRECTORY

In a process of its own: a child that waits for its parent's threads would never end.
"""

import os
import sys
import threading
import time
from pathlib import Path

import deepmnn
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.errors import RequestError

PROMPT = [5, 17, 200, 33, 33, 9]
PARAMS = deepmnn.SamplingParams(max_tokens=20, ignore_eos=True)
LONG = deepmnn.SamplingParams(max_tokens=180, ignore_eos=True)
"""Not at its end when the process forks: steps take a while."""


class SlowBackend(CpuBackend):
    def step(self, *arguments):
        time.sleep(0.003)
        return super().step(*arguments)


def ask_on(model: deepmnn.LLM, wanted: list[int], stop: threading.Event) -> None:
    while not stop.is_set():
        assert model.generate(PROMPT, PARAMS).ids == wanted


def child(model: deepmnn.LLM, wanted: list[int], stream, session, logits) -> None:
    try:
        list(stream)
    except RequestError as error:
        assert "forked" in str(error)  # noqa: PT017
    else:
        raise AssertionError("the rest of the answer was the parent's")
    assert not model.engine.scheduler.busy
    assert model.generate(PROMPT, PARAMS).ids == wanted
    assert [t for chunk in model.stream(PROMPT, PARAMS) for t in chunk.ids] == wanted
    assert (session.decode(7) == logits).all()
    session.close()
    engine = model.engine
    assert engine.manager.free_blocks == engine.cache.blocks


def fork(model: deepmnn.LLM, wanted: list[int], session, logits, leave) -> int:
    """In the middle of an answer, which the parent goes on with."""
    stream = model.stream(PROMPT, LONG)
    next(stream)
    pid = os.fork()
    if pid == 0:
        child(model, wanted, stream, session, logits)
        leave(0)
    assert len([t for chunk in stream for t in chunk.ids]) == LONG.max_tokens - 1
    return pid


def main(directory: Path) -> None:
    model = deepmnn.load(directory, "cpu", threads=2)
    model.backend = SlowBackend(directory, threads=2)
    wanted = model.generate(PROMPT, PARAMS).ids
    session = model.session()
    session.prefill(PROMPT)
    logits = session.decode(7)
    session.rollback(len(PROMPT))
    children = [fork(model, wanted, session, logits, sys.exit) for _ in range(2)]
    stop = threading.Event()
    others = [threading.Thread(target=ask_on, args=(model, wanted, stop)) for _ in range(3)]
    for thread in others:
        thread.start()
    # A child never ends the frames of these: to finalise it would find their objects in use.
    children += [fork(model, wanted, session, logits, os._exit) for _ in range(4)]
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    stop.set()
    for thread in others:
        thread.join()
    assert statuses == [0] * 6, statuses
    assert (session.decode(7) == logits).all()
    forked = model.driver.run(lambda _: os.waitpid(os.fork() or os._exit(0), 0)[1])
    assert forked == 0
    assert model.generate(PROMPT, PARAMS).ids == wanted
    print("ready")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
