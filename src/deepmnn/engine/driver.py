"""The engine's owner: one thread that steps it, and an inbox through which all others ask.

    LLM, Session, server ── submit, cancel, run, post ──► inbox ──► thread: jobs, step, jobs, step
             ▲                                                        │
             └─────────────── events (Request.deliver) ───────────────┘

Between two steps the thread does the jobs that have come in by then. Whatever changes the engine
is such a job, so nothing of it needs a lock, and a cancelled request is gone before the next step.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Failure, Request, result_of
from deepmnn.engine.sequence import Sequence
from deepmnn.errors import RequestError

T = TypeVar("T")

making = threading.Lock()
"""Held while an engine or its thread is made, and while the process forks."""

_exiting = False


class Driver:
    """Owns an engine and shares it among threads: all methods may be called on any.

    Its thread starts when it is first needed and sleeps while there is nothing to do. It ends with
    the interpreter, or when nobody refers to the driver any more; requests that are unfinished
    then fail. A forked child has the engine as it was between two steps, and a thread of its own
    as soon as it needs one; what was being answered is its parent's, and fails in the child.

    engine: to be read by any thread where it never changes (its limits, `check`, `sequence`);
        for everything else there is `run`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: _EngineThread | None = None

    def submit(self, requests: Iterable[Request]) -> None:
        """Queues requests; they come to the scheduler together."""
        taken = list(requests)
        self._start()
        self._inbox.put(lambda thread: thread.take(taken))

    def cancel(self, request: Request) -> None:
        """Ends a request before the next step; its last event says "cancelled".

        Returns at once, and may be called at any time: nothing happens when it has ended, or was
        never submitted.
        """
        if request.sequence.finish_reason is None:
            self._inbox.put(lambda thread: thread.cancel(request))

    def run(self, work: Callable[[Engine], T]) -> T:
        """Waits for work(engine), done by the engine's thread between two steps.

        What work raises is raised here. Its client may be interrupted while it waits; the work
        is done nevertheless.
        """
        thread = self._start()
        if thread is threading.current_thread():
            return work(self.engine)
        answer: SimpleQueue[T | Failure] = SimpleQueue()

        def job(thread: _EngineThread) -> None:
            try:
                answer.put(work(thread.engine))
            except BaseException as error:
                answer.put(Failure(0, error))

        self._inbox.put(job)
        return result_of(answer.get())

    def post(self, work: Callable[[Engine], object]) -> None:
        """Has work(engine) done before the next step, and waits for nothing.

        For finalizers: the garbage collector may call it on any thread, this engine's or another's.
        """
        self._inbox.put(lambda thread: work(thread.engine))

    def __del__(self) -> None:
        self._inbox.put(None)

    def _start(self) -> _EngineThread:
        """The thread; there is none before the first request, and in a forked child."""
        if self._thread is None or not self._thread.is_alive():
            with making:
                if _exiting:
                    raise RequestError("the interpreter is exiting", "requests before that")
                if self._thread is None or not self._thread.is_alive():
                    self._thread = _EngineThread(self.engine, self._inbox)
                    self._thread.start()
        return self._thread


class _EngineThread(threading.Thread):
    """Works through an inbox and steps the engine. Knows no driver, so that one can be dropped."""

    def __init__(self, engine: Engine, inbox: SimpleQueue[_Job | None]) -> None:
        super().__init__(name="deepmnn-engine", daemon=True)
        self.engine, self.inbox = engine, inbox
        self._requests: dict[Sequence, Request] = {}

    def run(self) -> None:
        """Until None comes in."""
        while self._turn():
            pass
        while not self.inbox.empty():  # other threads may wait for these
            self._do(self.inbox.get())
        self.fail_all(
            RequestError(
                "the model was dropped, or the program has ended, in the middle of an answer",
                "a model that is kept until its answers are whole",
            )
        )

    def _turn(self) -> bool:
        """Does what has come in, then a step. Whether to go on.

        A method, so that no variable holds on to the last job while the thread sleeps.
        """
        scheduler, inbox = self.engine.scheduler, self.inbox
        for _ in range(inbox.qsize() or (not scheduler.busy)):
            job = inbox.get()
            if job is None:
                return False
            self._do(job)
        if scheduler.busy:
            self._step()
        return True

    def _do(self, job: _Job | None) -> None:
        try:
            if job is not None:
                job(self)
        except Exception:
            _show_error()

    def take(self, requests: list[Request]) -> None:
        """Queues requests."""
        for request in requests:
            self._requests[request.sequence] = request
            self.engine.scheduler.add(request.sequence)

    def cancel(self, request: Request) -> None:
        """Ends a request that has been taken and is unfinished."""
        if request.sequence in self._requests:
            self.engine.cancel(request.sequence)
            self._report(request)

    def fail_all(self, error: BaseException) -> None:
        """Ends everything that is unfinished."""
        scheduler = self.engine.scheduler
        for sequence in [*scheduler.running, *scheduler.waiting]:
            self.engine.fail(sequence, error)
            if sequence in self._requests:
                self._report(self._requests[sequence])

    def pause(self, resume: SimpleQueue[None]) -> None:
        """Returns between two steps; there the thread stays until there is something to resume."""
        paused: SimpleQueue[None] = SimpleQueue()

        def job(_: _EngineThread) -> None:
            paused.put(None)
            resume.get()

        self.inbox.put(job)
        while self.is_alive():
            try:
                return paused.get(timeout=0.1)
            except Empty:  # a long step, or the thread was at its end
                continue

    def _step(self) -> None:
        try:
            told = self.engine.step()
        except Exception as error:  # nobody's fault in particular; no client may wait for ever
            self.fail_all(error)
            return
        for sequence in told:
            request = self._requests.get(sequence)
            if request is not None and (sequence.finish_reason or not request.whole):
                self._report(request)

    def _report(self, request: Request) -> None:
        if request.sequence.finish_reason:
            del self._requests[request.sequence]
        try:
            request.deliver(request.event())
        except Exception:  # nobody listens any more
            _show_error()
            self.engine.cancel(request.sequence)
            self._requests.pop(request.sequence, None)


_Job = Callable[[_EngineThread], object]


def _show_error() -> None:
    """As the interpreter does with errors that end a thread: to where the program wants them."""
    kind, error, trace = sys.exc_info()
    if kind is not None:
        hook = threading.excepthook
        hook(threading.ExceptHookArgs((kind, error, trace, threading.current_thread())))


def _other_threads() -> list[_EngineThread]:
    """The engine threads that run, without this one."""
    me = threading.current_thread()
    return [t for t in threading.enumerate() if isinstance(t, _EngineThread) and t is not me]


@atexit.register
def _end_threads() -> None:
    """A thread that came back from the core after the interpreter's end would crash."""
    global _exiting
    with making:
        _exiting = True
    threads = _other_threads()
    for thread in threads:
        thread.inbox.put(None)
    for thread in threads:
        thread.join()


_paused: list[tuple[_EngineThread, SimpleQueue[None]]] = []


def _before_fork() -> None:
    """The child must not find an engine in the middle of a step."""
    making.acquire()
    for thread in _other_threads():
        resume: SimpleQueue[None] = SimpleQueue()
        _paused.append((thread, resume))
        thread.pause(resume)


def _after_fork(child: bool) -> None:
    error = RequestError(
        "the process has forked in the middle of an answer",
        "its end in the parent",
        "Ask again in the child.",
    )
    for thread, resume in _paused:
        if child:  # the thread is the parent's: this one does its last work
            thread.fail_all(error)
        else:
            resume.put(None)
    _paused.clear()
    making.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(False),
        after_in_child=lambda: _after_fork(True),
    )
