"""Forks at moments that are no good ones; a child must say so, and end. Nothing may wait for ever.

    python lost_child.py DIRECTORY unannounced|engine|handler|tokenizer|direct|process|mnn

In a process of its own: a child that waits for its parent's threads would never end.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import deepmnn
from deepmnn.backends.cpu.backend import CpuBackend
from deepmnn.errors import RequestError
from deepmnn.text import tokenizer as text

PROMPT = [5, 17, 200, 33, 33, 9]
PARAMS = deepmnn.SamplingParams(max_tokens=20, ignore_eos=True)
LONG = deepmnn.SamplingParams(max_tokens=180, ignore_eos=True)
PATIENCE = 60  # seconds, far above the need; then a signal ends the child


class SlowBackend(CpuBackend):
    def step(self, *arguments):
        time.sleep(0.003)
        return super().step(*arguments)


def refused(use: Callable[[], object]) -> None:
    try:
        use()
    except RequestError as error:
        assert "fork" in str(error), error  # noqa: PT017
    else:
        raise AssertionError("the child has lost what it uses")


def loaded(directory: Path) -> tuple[deepmnn.LLM, list[int]]:
    model = deepmnn.load(directory, "cpu", threads=2)
    model.backend = SlowBackend(directory, threads=2)
    return model, model.generate(PROMPT, PARAMS).ids


def ended(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def unannounced(directory: Path) -> None:
    """C code forks and tells Python only afterwards, while other threads ask."""
    python = ctypes.PyDLL(None)  # keeps the interpreter's lock
    model, wanted = loaded(directory)
    stream, session = model.stream(PROMPT, LONG), model.session()
    next(stream)
    session.prefill(PROMPT)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            assert model.generate(PROMPT, PARAMS).ids == wanted

    others = [threading.Thread(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    usual = sys.getswitchinterval()
    for leave in (sys.exit, os._exit):
        # No thread may ask for the lock between fork() and the line after it: the child would hand
        # it over to that one.
        sys.setswitchinterval(10 * PATIENCE)
        time.sleep(0.05)
        pid = python.fork()
        if pid == 0:
            python.PyOS_AfterFork_Child()
            sys.setswitchinterval(usual)
            signal.alarm(PATIENCE)
            refused(lambda: list(stream))
            refused(lambda: model.generate(PROMPT, PARAMS))
            refused(lambda: list(model.stream([PROMPT] * 2, PARAMS)))
            refused(lambda: session.decode(7))
            refused(lambda: model.logits(PROMPT))
            stream.close()
            session.close()
            fresh = deepmnn.load(directory, "cpu", threads=2)
            assert fresh.generate(PROMPT, PARAMS).ids == wanted
            del stream, session, model
            gc.collect()
            leave(0)
        sys.setswitchinterval(usual)
        assert ended(pid) == 0
    stop.set()
    for other in others:
        other.join()
    assert len([t for chunk in stream for t in chunk.ids]) == LONG.max_tokens - 1
    assert (session.decode(7) == model.logits([*PROMPT, 7])[-1]).all()


def engine(directory: Path) -> None:
    """The engine's own thread forks: in the child it ends, and with it the child."""
    model, wanted = loaded(directory)
    stream = model.stream(PROMPT, LONG)
    next(stream)

    def work(_: object) -> int:
        pid = os.fork()
        if pid == 0:
            signal.alarm(PATIENCE)
        return pid

    assert ended(model.driver.run(work)) == 0
    assert len([t for chunk in stream for t in chunk.ids]) == LONG.max_tokens - 1
    assert model.generate(PROMPT, PARAMS).ids == wanted


def handler(directory: Path) -> None:
    """A signal's handler forks while this thread waits for the engine; the child goes on here."""
    model, wanted = loaded(directory)
    children: list[int] = []

    def fork(*_: object) -> None:
        pid = os.fork()
        children.append(pid)
        if pid == 0:
            signal.alarm(PATIENCE)

    signal.signal(signal.SIGUSR1, fork)

    def interrupted(use: Callable[[], object]) -> None:
        """Forks while `use` waits."""
        children.clear()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        use()
        assert children, "too fast"
        if children == [0]:
            assert model.generate(PROMPT, PARAMS).ids == wanted
            os._exit(0)
        assert ended(children[0]) == 0

    def answer() -> None:
        try:
            model.generate(PROMPT, LONG)
        except RequestError as error:
            assert children == [0], error  # noqa: PT017
            assert "forked" in str(error)  # noqa: PT017

    interrupted(answer)
    interrupted(lambda: model.driver.run(lambda _: time.sleep(0.5)))  # ends before the fork
    assert model.generate(PROMPT, PARAMS).ids == wanted


def tokenizer(directory: Path) -> None:
    """Another thread asks first, and loads the tokenizer, which takes a while."""
    wanted = loaded(directory)[1]
    model = deepmnn.load(directory, "cpu", threads=2)
    begun = threading.Event()
    plain = text.Tokenizer.__init__

    def slow(self: text.Tokenizer, path: Path) -> None:
        begun.set()
        time.sleep(0.3)
        plain(self, path)

    text.Tokenizer.__init__ = slow  # type: ignore[method-assign]
    other = threading.Thread(target=lambda: model.generate(PROMPT, PARAMS))
    other.start()
    begun.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        assert model.tokenizer.decode(model.encode("ab")) == "ab"
        assert model.generate(PROMPT, PARAMS).ids == wanted
        os._exit(0)
    assert ended(pid) == 0
    other.join()


def direct(directory: Path) -> None:
    """Threads that step a backend without an engine: a fork waits for nobody."""
    backend = CpuBackend(directory, threads=2)
    count = 150

    def numbers(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    def step() -> np.ndarray:
        cache = backend.new_cache(1, count)
        row = numbers(*range(count))
        table = numbers(0).reshape(1, 1)
        core = backend.model
        return core.step(
            cache, row, row, numbers(0, count), numbers(count), table, numbers(count - 1)
        )

    wanted = step()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            assert (step() == wanted).all()

    others = [threading.Thread(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    codes = []
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            signal.alarm(PATIENCE)
            try:
                assert (step() == wanted).all()
            except RequestError as error:
                assert "forked" in str(error)  # noqa: PT017
                refused(step)
                refused(backend.model.memory)
                backend = CpuBackend(directory, threads=2)
                assert (step() == wanted).all()
                os._exit(3)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(ended(pid)))
        time.sleep(0.002)
    stop.set()
    for other in others:
        other.join()
    assert set(codes) <= {0, 3}, codes
    assert 3 in codes, "no fork in the middle of a step"
    assert (step() == wanted).all()


def process(directory: Path) -> None:
    """multiprocessing's way to fork, from a thread, while others ask."""
    model, wanted = loaded(directory)
    stream = model.stream(PROMPT, LONG)
    next(stream)

    def child() -> None:
        signal.alarm(PATIENCE)
        assert model.generate(PROMPT, PARAMS).ids == wanted

    def start() -> None:
        made = multiprocessing.get_context("fork").Process(target=child)
        made.start()
        made.join()
        codes.append(made.exitcode)

    codes: list[int | None] = []
    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert len([t for chunk in stream for t in chunk.ids]) == LONG.max_tokens - 1
    for thread in threads:
        thread.join()
    assert codes == [0] * 4, codes


def mnn(directory: Path) -> None:
    """MNN's own threads are the parent's."""
    model = deepmnn.load(directory, "mnn", threads=2)
    wanted = model.generate(PROMPT, PARAMS).ids
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        refused(lambda: model.generate(PROMPT, PARAMS))
        refused(lambda: deepmnn.load(directory, "mnn", threads=2))
        alone = deepmnn.load(directory, "mnn", threads=1)
        assert alone.generate(PROMPT, PARAMS).ids == wanted
        sys.exit(0)
    assert ended(pid) == 0
    assert model.generate(PROMPT, PARAMS).ids == wanted


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]))
    print("ready")
