"""Every answer of an evaluation, written as it is finished."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepmnn.errors import StorageError
from deepmnn.measure.evaluate import Answer


class AnswerFile:
    """A new file of JSON Lines, one for each answer, in the order in which they are finished.

    A line is written whole as soon as its answer is there: what ends the program leaves the lines
    so far. Raises StorageError when the file exists already, and when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open(
                "x", encoding="utf-8", errors="backslashreplace", buffering=1, newline="\n"
            )
        except FileExistsError:
            raise StorageError(
                f"{path} exists", "a new file", "Remove it, or name another."
            ) from None
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def add(self, answer: Answer) -> None:
        """Writes an answer's line."""
        line = json.dumps(described(answer), ensure_ascii=False) + "\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as error:
            if kind is None:
                raise self._failed(error) from error

    def _failed(self, error: Exception) -> StorageError:
        return StorageError(f"{self._path} cannot be written: {error}", "a file for the answers")


def described(answer: Answer) -> dict[str, Any]:
    """An answer as JSON has it."""
    problem, completion = answer.problem, answer.completion
    return {
        "question": problem.question,
        "kind": problem.kind,
        "answer": completion.text,
        "reasoning": completion.reasoning,
        "expected": list(problem.answers),
        "match": problem.match,
        "verdict": str(answer.verdict),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
