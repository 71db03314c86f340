"""The requests of a batch: a file of JSON lines.

{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...]}}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from deepmnn.errors import RequestError, shown
from deepmnn.serve.batch.endpoints import ENDPOINTS

MOST_BYTES = 16 << 20
"""Of a line."""


@dataclass(frozen=True)
class Task:
    """A line: the client's own name for it, the endpoint, and the body of the request."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_tasks(path: Path) -> Iterator[Task]:
    """One by one. Raises RequestError for a file that cannot be read, or a line that is no task."""
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} is no file", "one, for it is read several times")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_BYTES + 1):
                number += 1
                if line.strip():
                    yield _task(line, f"{path}, line {number}")
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read: {error.strerror}", "a file with a request on each line"
        ) from None


def task_ids(path: Path) -> set[str]:
    """The names of all of a file's tasks, each of which is checked. Raises RequestError."""
    found: set[str] = set()
    for task in read_tasks(path):
        if task.custom_id in found:
            raise RequestError(
                f"{path} has two lines with the custom_id {shown(task.custom_id)}",
                "a custom_id of its own for each: answers are told apart by it",
            )
        found.add(task.custom_id)
    if not found:
        raise RequestError(f"{path} is empty", "a request on each line")
    return found


def _task(line: bytes, where: str) -> Task:
    if len(line) > MOST_BYTES:
        raise RequestError(f"{where} has more than {MOST_BYTES:,} bytes", "a shorter request")
    try:
        fields = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"{where} is no JSON: {error}", "an object on each line") from None
    match fields:
        case {"custom_id": str(name), "url": str(url), "body": dict(body)} if name:
            if fields.get("method", "POST") != "POST":
                raise RequestError(f"{where}: method is {shown(fields['method'])}", "'POST'")
            if url not in ENDPOINTS:
                raise RequestError(f"{where}: url is {shown(url)}", " or ".join(ENDPOINTS))
            return Task(name, url, body)
    raise RequestError(
        f"{where} is {shown(fields)}",
        '{"custom_id": text, "method": "POST", "url": "/v1/chat/completions", "body": {...}}',
    )
