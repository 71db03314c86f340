"""Runs a batch: as many requests at a time as keep the engine busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.api.llm import LLM
from deepmnn.errors import DeepmnnError, RequestError, Words, shown
from deepmnn.serve.batch.endpoints import ENDPOINTS
from deepmnn.serve.batch.results import Results, partial_of
from deepmnn.serve.batch.tasks import Task, read_tasks, task_ids
from deepmnn.serve.errors import RefusedError
from deepmnn.serve.protocols.sse import new_id
from deepmnn.serve.service import Service

_AHEAD = 2
"""Times as many as the engine runs together: the next ones are tokenised by then."""

_ANEW = Words("Move it away, or overwrite=True.", "Move it away, or --overwrite.")


@dataclass
class Counts:
    """How many requests are answered, refused, and were answered before (of `total`)."""

    total: int
    before: int
    answered: int = 0
    refused: int = 0

    @property
    def done(self) -> int:
        """All that have a line."""
        return self.before + self.answered + self.refused


def run_batch(
    model: LLM,
    name: str,
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Counts:
    """Answers every request of a file.

    Whoever is stopped, or killed, calls it again and goes on from there: no request is answered
    twice, and none is left out.

    Args:
        model: what answers.
        name: what the answers call it.
        source: the requests (`Task`). All lines are checked before any work is done.
        target: the answers, a line for each, in the order in which they came.
        overwrite: begin anew where answers are there.
        progress: called with (lines done, lines in all).

    A request that the model cannot answer has its error in its line. Raises RequestError for a
    file that holds no requests, StorageError when the answers cannot be written.
    """
    ids = task_ids(source)
    for place in (target, partial_of(target)):
        if place.exists() and place.samefile(source):
            raise RequestError(f"{place} holds the requests", "another file for the answers")
    with Results(target, overwrite=overwrite) as results:
        strange = results.done - ids
        if strange:
            raise RequestError(
                f"{results.partial} has the answer to {shown(min(strange))}, which {source} lacks",
                "answers to these requests",
                _ANEW,
            )
        others = results.models - {name}
        if others:
            raise RequestError(
                f"{results.partial} has answers of {shown(min(others))}",
                f"those of {name!r}, which answers now",
                _ANEW,
            )
        counts = Counts(len(ids), len(results.done))
        if counts.done < counts.total:
            asyncio.run(_Run(model, name, results, counts, progress).all_of(source))
        if counts.done != counts.total:
            raise RequestError(
                f"{source} has changed: {counts.done} of its {counts.total} requests are answered",
                "the same requests all the time",
                "The same call goes on.",
            )
        results.finish()
    return counts


class _Run:
    """The requests under way."""

    def __init__(
        self,
        model: LLM,
        name: str,
        results: Results,
        counts: Counts,
        progress: Callable[[int, int], object],
    ) -> None:
        self._model, self._name = model, name
        self._results, self._counts, self._progress = results, counts, progress

    async def all_of(self, source: Path) -> None:
        """Answers what has no line yet."""
        service = Service(self._model, self._name, max_queue=1 << 30)
        room = asyncio.Semaphore(_AHEAD * self._model.driver.engine.scheduler.max_sequences)
        try:
            async with asyncio.TaskGroup() as group:
                for task in read_tasks(source):
                    if task.custom_id in self._results.done:
                        continue
                    await room.acquire()
                    made = group.create_task(self._one(service, task))
                    made.add_done_callback(lambda _: room.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            service.close()

    async def _one(self, service: Service, task: Task) -> None:
        try:
            status, body = 200, await self._answer(service, task)
        except DeepmnnError as error:
            refusal = RefusedError.of(error)
            status, body = refusal.status, refusal.body({"path": task.url})
        response = {"status_code": status, "request_id": new_id("req_"), "body": body}
        line = {
            "id": new_id("batch_req_"),
            "custom_id": task.custom_id,
            "response": response,
            "error": None,
        }
        self._results.add(task.custom_id, line)
        if status == 200:
            self._counts.answered += 1
        else:
            self._counts.refused += 1
        self._progress(self._counts.done, self._counts.total)

    async def _answer(self, service: Service, task: Task) -> dict[str, Any]:
        prompts, params, collected = ENDPOINTS[task.url](task.body, self._name, self._model)
        answer = await service.ask_all(prompts, params)
        try:
            async for chunk in answer:
                collected.add(chunk)
        finally:
            answer.cancel()
        return collected.body()
