"""Problems with known answers, from a file of JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmnn.errors import RequestError, shown
from deepmnn.measure.match import MATCHES, default_match, is_number, matches, parse_choice
from deepmnn.source.json_file import read_small

_EXPECTED = '{"question": "...", "answer": "..."}'


@dataclass(frozen=True)
class Problem:
    """A question with its answers, of which each is right.

    kind groups problems in the report. match says how answers are compared (match.py); "" leaves it
    to the answers (`default_match`).
    """

    question: str
    answers: tuple[str, ...]
    kind: str = ""
    match: str = ""

    def __post_init__(self) -> None:
        if not self.match:
            object.__setattr__(self, "match", default_match(self.answers))

    def is_right(self, text: str, *, complete: bool = True) -> bool:
        """Whether a text answers it; raises as `matches`."""
        return matches(self.match, text, self.answers, complete=complete)


def read_problems(path: str | Path, match: str = "") -> list[Problem]:
    """Problems from a JSON Lines file.

    A line is {"question": ..., "answer": ...}, where the answer is a text, a number, or a list of
    them, all right; "kind" and "match" are optional. match: of lines that have none.

    Raises RequestError when the file cannot be read, or a line is something else.
    """
    try:
        content = read_small(Path(path), RequestError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} cannot be read: {error}", "a JSON Lines file") from error
    problems = [
        _parse_problem(line, f"{path}, line {number}", match)
        for number, line in enumerate(content.split("\n"), 1)
        if line.strip()
    ]
    if not problems:
        raise RequestError(f"{path} holds no problems", "at least one line")
    return problems


def check_match(match: object, place: str) -> str:
    """The match, when it is one or "". Raises RequestError."""
    if match == "" or (isinstance(match, str) and match in MATCHES):
        return match
    raise RequestError(f"{place} is {shown(match)}", " or ".join(map(repr, MATCHES)))


def _parse_problem(line: str, place: str, match: str) -> Problem:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    answers = _answers(found.get("answer")) if isinstance(found, dict) else []
    if not isinstance(found, dict) or not isinstance(found.get("question"), str) or not answers:
        raise RequestError(f"{place} is {shown(line)}", _EXPECTED)
    own = check_match(found.get("match", ""), f"{place}: match")
    problem = Problem(found["question"], tuple(answers), str(found.get("kind", "")), own or match)
    _check_answers(problem, place)
    return problem


def _answers(value: Any) -> list[str]:
    """The right answers; none when the value is no answer."""
    values = value if isinstance(value, list) else [value]
    texts = [str(v) if type(v) in (int, float) else v for v in values]
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else []


def _check_answers(problem: Problem, place: str) -> None:
    """Raises RequestError when no text could ever match an answer."""
    for answer in problem.answers:
        if problem.match == "number" and not is_number(answer):
            raise RequestError(f"{place}: the answer is {shown(answer)}", "a number to match")
        if problem.match == "choice" and parse_choice(answer) is None:
            raise RequestError(f"{place}: the answer is {shown(answer)}", "a letter from A to J")


def patterns(problems: Sequence[Problem]) -> list[str]:
    """The regular expressions among the answers, each once."""
    found = (answer for p in problems if p.match == "regex" for answer in p.answers)
    return list(dict.fromkeys(found))
