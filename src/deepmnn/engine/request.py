"""A request and what is told of it: the two ends between an engine's driver and a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from deepmnn.engine.completion import Chunk
from deepmnn.engine.sequence import Sequence
from deepmnn.text.stream import Streamed

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An error instead of an answer; index is that of Chunk. See `result_of`."""

    index: int
    error: BaseException


Event = Chunk | Failure


class Request:
    """A sequence on its way, and who is told. `Driver.submit` queues it.

    The last event is a Chunk with a finish_reason, or a Failure; every request that is submitted
    gets exactly one of them. For n answers to one prompt, submit n requests together: of a
    sequence and of its siblings.

    Args:
        sequence: of `Engine.sequence`.
        deliver: called on the engine's thread with each event, in order. It must not block:
            `SimpleQueue.put` serves a thread that waits,
            `partial(loop.call_soon_threadsafe, queue.put_nowait)` an event loop. When it raises,
            the request is cancelled.
        index, choice: which prompt of a batch this answers, and which of its answers this is;
            handed on in the events.
        whole: one Chunk for the whole answer instead of one for each step, which wakes nobody
            before there is something to read.
    """

    def __init__(
        self,
        sequence: Sequence,
        deliver: Callable[[Event], object],
        index: int = 0,
        choice: int = 0,
        *,
        whole: bool = False,
    ) -> None:
        self.sequence, self.deliver = sequence, deliver
        self.index, self.choice, self.whole = index, choice, whole
        self._reported = 0

    def event(self) -> Event:
        """What has become of it since the last call. Only on the engine's thread."""
        sequence = self.sequence
        if sequence.error is not None:
            # Handed over: its traceback leads back to the sequence, and to the engine.
            failure, sequence.error = Failure(self.index, sequence.error), None
            return failure
        begun, first, last = sequence.scheduled, sequence.first_token, sequence.last_token
        output = sequence.output
        streamed = output.take() if output else Streamed("", "", [])
        ids = sequence.ids[sequence.prompt_tokens + self._reported :]
        logprobs = sequence.logprobs[self._reported :]
        self._reported += len(ids)
        return Chunk(
            index=self.index,
            text=streamed.text,
            reasoning=streamed.reasoning,
            ids=ids,
            finish_reason=sequence.finish_reason,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=sequence.cached_tokens,
            completion_tokens=self._reported,
            prefill_seconds=first - sequence.submitted if first else 0.0,
            decode_seconds=last - first if first and last else 0.0,
            choice=self.choice,
            queue_seconds=begun - sequence.submitted if begun else 0.0,
            logprobs=logprobs,
            tool_calls=streamed.tool_calls,
            reasoning_tokens=output.reasoning_tokens if output else 0,
            stop_string=output.stop_string if output else "",
            drafted_tokens=sequence.drafted_tokens,
            accepted_tokens=sequence.accepted_tokens,
        )


def result_of(found: T | Failure) -> T:
    """What was found; the error of a Failure is raised."""
    if not isinstance(found, Failure):
        return found
    try:
        raise found.error
    finally:
        del found  # the error's traceback has this frame: together they would stay for ever
