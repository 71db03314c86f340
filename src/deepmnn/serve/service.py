"""The model as an event loop asks it: requests go to the engine's thread, chunks come back.

coroutine ── ask ──► worker thread: template, tokenizer ── submit ──► engine's thread
    ▲                                                                      │
    └── Answer ◄── mailbox, one wake-up for all chunks of a step ◄─────────┘
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from deepmnn.api.llm import LLM
from deepmnn.api.prompts import Prompt
from deepmnn.engine.completion import Chunk
from deepmnn.engine.pace import Pace
from deepmnn.engine.request import Event, Failure, Request, result_of
from deepmnn.errors import OverloadedError
from deepmnn.text.sampling_params import SamplingParams

T = TypeVar("T")

_READERS = 2
"""Threads that render templates and tokenise: more would take the engine's processors."""


class Service:
    """One model behind one event loop; all methods are called on it.

    Args:
        model: what answers.
        name: what clients call it.
        max_queue: answers that may wait beside those that run; more are refused.
        pace: bounds the prompts that run beside answers; None: as the engine does.

    Attributes:
        active: answers that run or wait.
        watch: called for each prompt that is asked, gives what is then called with each event of
            its answers; it must not raise.
    """

    def __init__(
        self, model: LLM, name: str, *, max_queue: int = 256, pace: Pace | None = None
    ) -> None:
        self.model, self.name = model, name
        self.active = 0
        self.watch: Callable[[], Callable[[Event], object]] | None = None
        scheduler = model.engine.scheduler
        scheduler.pace = pace
        self._most = max_queue + scheduler.max_sequences
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="deepmnn-reader")
        self._mailbox: _Mailbox | None = None
        self._answers: set[Answer] = set()

    async def ask(self, prompt: Prompt, params: SamplingParams) -> Answer:
        """Queues a prompt; its answer comes as an iterator of chunks. Raises as `ask_all`."""
        return await self.ask_all([prompt], params)

    async def ask_all(self, prompts: Sequence[Prompt], params: SamplingParams) -> Answer:
        """Queues several prompts together: `Chunk.index` says which of them a chunk answers.

        Raises RequestError, ContextLengthError or TokenizerError as `LLM.generate` does, and
        OverloadedError when the queue is full; then nothing has been queued.
        """
        count = len(prompts) * params.n
        self._check_room(count)
        self.active += count  # at once: others ask while this one is tokenised
        if self._mailbox is None:
            self._mailbox = _Mailbox(asyncio.get_running_loop())
        answer = Answer(self, self._mailbox, self.watch() if self.watch else None)
        try:
            made = await self.read(partial(self._requests, prompts, params, answer))
        except BaseException:
            self.active -= count
            raise
        answer.submit(made)
        self._answers.add(answer)
        return answer

    async def tokens(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. Raises as `ask` does."""
        return await self.read(lambda: self.model.encode(prompt))

    def cancel_all(self) -> None:
        """Ends every answer before the engine's next step."""
        for answer in list(self._answers):
            answer.cancel()

    def close(self) -> None:
        """Ends every answer and the worker threads; the model stays."""
        self.cancel_all()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def ended(self, answer: Answer, count: int) -> None:
        """Answers of these have come to their end, for `Answer`."""
        self.active -= count
        if not answer.unfinished:
            self._answers.discard(answer)

    def _check_room(self, count: int) -> None:
        if self.active + count > self._most:
            raise OverloadedError(
                f"{self.active} answers are under way or wait",
                f"at most {self._most}",
                "Ask again later.",
            )

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams, answer: Answer
    ) -> list[Request]:
        make = self.model.request
        made = [make(each, params, answer.deliver, i) for i, each in enumerate(prompts)]
        return [request for requests in made for request in requests]

    async def read(self, work: Callable[[], T]) -> T:
        """What work() gives, done by a worker thread. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)


class Answer(AsyncIterator[Chunk]):
    """The answers to one question, chunk by chunk as they come: `Chunk.choice` says of which.

    Iteration raises the error that ended an answer. Whoever stops reading early calls `cancel`.
    """

    def __init__(
        self, service: Service, mailbox: _Mailbox, watch: Callable[[Event], object] | None
    ) -> None:
        self._service, self._mailbox, self._watch = service, mailbox, watch
        self._requests: list[Request] = []
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.unfinished = 0
        self.prompt_tokens = 0

    def submit(self, requests: list[Request]) -> None:
        """Hands its requests to the engine."""
        self._requests, self.unfinished = requests, len(requests)
        firsts = [request for request in requests if request.choice == 0]
        self.prompt_tokens = sum(request.sequence.prompt_tokens for request in firsts)
        self._service.model.driver.submit(requests)

    def deliver(self, event: Event) -> None:
        """What the engine's thread calls."""
        self._mailbox.put(self, event)

    def take(self, event: Event) -> None:
        """What the mailbox calls, on the event loop."""
        if self._watch is not None:
            self._watch(event)
        self._events.append(event)
        if isinstance(event, Failure) or event.finish_reason:
            self.unfinished -= 1
            self._service.ended(self, 1)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        """Ends what is unfinished before the next step, and frees its cache blocks."""
        for request in self._requests:
            self._service.model.driver.cancel(request)

    async def __anext__(self) -> Chunk:
        if not await self._wait():
            raise StopAsyncIteration
        return result_of(self._events.popleft())

    async def some(self) -> list[Chunk]:
        """The chunks that have come, at least one; none after the last. Raises as iteration."""
        if not await self._wait():
            return []
        chunks = [result_of(self._events.popleft())]
        while self._events and not isinstance(self._events[0], Failure):
            chunks.append(result_of(self._events.popleft()))
        return chunks

    async def _wait(self) -> bool:
        """Waits for an event; False when none will come any more."""
        while not self._events:
            if not self.unfinished:
                return False
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return True


class _Mailbox:
    """From the engine's thread to the event loop: one wake-up for all that a step delivers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Answer, Event]] = deque()
        self._woken = False

    def put(self, answer: Answer, event: Event) -> None:
        """Any thread."""
        self._events.append((answer, event))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop has ended, and nobody reads any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False  # first: what comes from now on wakes the loop again
        while self._events:
            answer, event = self._events.popleft()
            answer.take(event)
