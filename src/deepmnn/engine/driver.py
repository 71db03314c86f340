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
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar
from weakref import WeakSet

from deepmnn.engine.engine import Engine
from deepmnn.engine.request import Failure, Request, result_of
from deepmnn.engine.sequence import Sequence
from deepmnn.errors import RequestError

T = TypeVar("T")

making = threading.RLock()
"""Held while an engine, its thread or a tokenizer is made, and while the process forks: a signal's
handler may do that in the middle of what its thread makes."""


class Driver:
    """Owns an engine and shares it among threads: all methods may be called on any.

    Its thread starts when it is first needed and sleeps while there is nothing to do. It ends with
    the interpreter, or when nobody refers to the driver any more; requests that are unfinished
    then fail.

    A process that forks waits for the end of a step. The child has the engine as it was then, and
    a thread of its own as soon as it needs one; what was being answered is its parent's, and fails
    in the child. Where a fork does not wait (the engine's own thread forks, or C code that tells
    Python afterwards), all that the child asks for is a RequestError.

    engine: to be read by any thread where it never changes (its limits, `check`, `sequence`);
        for everything else there is `run`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._stepper = _Stepper(engine)
        self._inbox = self._stepper.inbox

    def submit(self, requests: Iterable[Request]) -> None:
        """Queues requests; they come to the scheduler together."""
        taken = list(requests)
        self._stepper.ensure()
        self._inbox.put(lambda stepper: stepper.take(taken))

    def cancel(self, request: Request) -> None:
        """Ends a request before the next step; its last event says "cancelled".

        Returns at once, and may be called at any time: nothing happens when it has ended, or was
        never submitted.
        """
        if request.sequence.finish_reason is None:
            self._inbox.put(lambda stepper: stepper.cancel(request))

    def run(self, work: Callable[[Engine], T]) -> T:
        """Waits for work(engine), done by the engine's thread between two steps.

        What work raises is raised here. Who waits may be interrupted; the work is done
        nevertheless.
        """
        self._stepper.ensure()
        if self._stepper.thread is threading.current_thread():
            return work(self.engine)
        answer: SimpleQueue[T | Failure] = SimpleQueue()

        def job(stepper: _Stepper) -> None:
            if not stepper.alive:  # a forked child; the handler of a signal may have forked it here
                answer.put(Failure(0, _forked()))
                return
            try:
                answer.put(work(stepper.engine))
            except BaseException as error:
                answer.put(Failure(0, error))

        self._inbox.put(job)
        return result_of(answer.get())

    def post(self, work: Callable[[Engine], object]) -> None:
        """Has work(engine) done before the next step, and waits for nothing.

        For finalizers: the garbage collector may call it on any thread, this engine's or another's.
        """
        self._inbox.put(lambda stepper: None if stepper.lost else work(stepper.engine))

    def __del__(self) -> None:
        if hasattr(self, "_inbox"):  # an interrupt may have come before
            self._inbox.put(type(self._stepper).finish)  # globals may be gone


class _Stepper:
    """What the thread works on. It knows no driver, so that one can be dropped."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inbox: SimpleQueue[Callable[[_Stepper], object]] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.resting = False
        """Whether the thread has made room for a fork, and starts again by itself."""
        self.finished = False
        self._requests: dict[Sequence, Request] = {}
        self._going = False
        self._process = os.getpid()
        """Where the thread was started, or which child has taken over between two steps."""
        _steppers.add(self)

    @property
    def alive(self) -> bool:
        """Whether the thread runs; in a forked child it does not."""
        return self.thread is not None and self.thread.is_alive() and not self.lost

    @property
    def lost(self) -> bool:
        """Whether this is a child that was forked at any moment: a step may be half done."""
        return self.thread is not None and self._process != os.getpid()

    def ensure(self) -> None:
        """Starts the thread unless it runs.

        Raises RequestError when the interpreter exits, and in a child that has lost the engine.
        """
        if self.alive or (self.resting and not _exiting):
            return
        with making:
            if _exiting:
                raise RequestError("the interpreter is exiting", "requests before that")
            if self.lost:
                raise RequestError(
                    "this process was forked in the middle of a step of the model",
                    "a model of this process",
                    "Load it again here.",
                )
            if not self.alive:
                self.start()

    def start(self) -> None:
        """Starts the thread; under the lock."""
        self._process = os.getpid()
        self.thread = threading.Thread(target=self._run, name="deepmnn-engine", daemon=True)
        self.thread.start()

    def join(self) -> None:
        """Waits for the thread to end."""
        if self.thread is not None:
            self.thread.join()

    def take(self, requests: list[Request]) -> None:
        """Queues requests."""
        for request in requests:
            self._requests[request.sequence] = request
            if not self.lost:
                self.engine.scheduler.add(request.sequence)

    def cancel(self, request: Request) -> None:
        """Ends a request that has been taken and is unfinished."""
        if request.sequence in self._requests and not self.lost:
            self.engine.cancel(request.sequence)
            self._report(request)

    def fail_all(self, error: BaseException) -> None:
        """Ends everything that is unfinished."""
        if self.lost:  # nobody may touch the engine
            for request in self._requests.values():
                with suppress(Exception):  # nobody listens any more
                    request.deliver(Failure(request.index, error))
            self._requests.clear()
            return
        scheduler = self.engine.scheduler
        for sequence in [*scheduler.running, *scheduler.waiting]:
            self.engine.fail(sequence, error)
        for request in list(self._requests.values()):
            self._report(request)

    def stop(self) -> None:
        """Ends the thread; another one may go on from here."""
        self._going = False

    def finish(self) -> None:
        """Ends the thread, and what it still had to do."""
        self.clear(
            RequestError(
                "the model was dropped, or the program has ended, in the middle of an answer",
                "a model that is kept until its answers are whole",
            )
        )
        self.finished = True
        self.stop()

    def clear(self, error: RequestError) -> None:
        """Does what has come in; requests fail."""
        while not self.inbox.empty():
            self._do(self.inbox.get())
        self.fail_all(error)

    def fork(self) -> None:
        """In the child: what was being answered is the parent's."""
        if self._going:  # in a step, or in a job of this very thread, which then ends
            self.stop()
        else:
            self._process = os.getpid()
        self.clear(_forked())
        self.resting = False

    def _run(self) -> None:
        self._going = True
        while self._going:
            self._turn()

    def _turn(self) -> None:
        """Does what has come in, then a step.

        A method, so that no variable holds on to the last job while the thread sleeps.
        """
        scheduler, inbox = self.engine.scheduler, self.inbox
        for _ in range(inbox.qsize() or (not scheduler.busy)):
            self._do(inbox.get())
            if not self._going:
                return
        if scheduler.busy:
            self._step()

    def _do(self, job: Callable[[_Stepper], object]) -> None:
        try:
            job(self)
        except BaseException as error:
            _show(error)

    def _step(self) -> None:
        try:
            told = self.engine.step()
        except BaseException as error:  # nobody's in particular, and no client may wait for ever
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
        except BaseException as error:  # nobody listens any more
            _show(error)
            self.engine.cancel(request.sequence)
            self._requests.pop(request.sequence, None)


def _forked() -> RequestError:
    return RequestError(
        "this process has forked in the middle of what the model was doing",
        "its end in the parent",
        "Ask again here.",
    )


def _show(error: BaseException) -> None:
    """As the interpreter shows errors that end a thread: where the program wants them."""
    thread = threading.current_thread()
    hook = threading.excepthook
    hook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))


# ---------------------------------------------------------------------------- exit and fork

_steppers: WeakSet[_Stepper] = WeakSet()
_exiting = False


def _end(how: Callable[[_Stepper], None]) -> None:
    """Has every engine thread but this one end, between two steps, and waits for that."""
    me = threading.current_thread()
    ended = [stepper for stepper in list(_steppers) if stepper.alive and stepper.thread is not me]
    for stepper in ended:
        stepper.resting = True
        stepper.inbox.put(how)
    for stepper in ended:
        stepper.join()


@atexit.register
def _before_exit() -> None:
    """A thread that came back from the core after the interpreter's end would crash."""
    global _exiting
    with making:
        _exiting = True
    _end(_Stepper.finish)


def _before_fork() -> None:
    """The child must not find an engine in the middle of a step, nor frames that never end."""
    making.acquire()
    _end(_Stepper.stop)


def _after_fork_in_parent() -> None:
    for stepper in [stepper for stepper in list(_steppers) if stepper.resting]:
        stepper.join()  # if an interrupt has kept the one above from it
        stepper.resting = False
        if not stepper.finished:
            stepper.start()
    with suppress(RuntimeError):  # an interrupt may have come before the lock
        making.release()


def _after_fork_in_child() -> None:
    # Whoever had it. The standard library does the same to its own.
    making._at_fork_reinit()  # type: ignore[attr-defined]
    for stepper in list(_steppers):
        stepper.fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
