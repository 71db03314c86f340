"""Exact-match evaluation: ask, and compare the answer's number or text with the known one."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from deepmnn.engine.completion import Completion
from deepmnn.errors import RequestError
from deepmnn.text.sampling_params import SamplingParams

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM


@dataclass(frozen=True)
class Problem:
    """A question with its answer; kind groups problems in the report."""

    question: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Answer:
    """What the model said to a problem, and whether it is right."""

    problem: Problem
    completion: Completion
    correct: bool


@dataclass
class Report:
    """The outcome. seconds: wall time of the whole run."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def correct(self) -> int:
        """Problems answered exactly."""
        return sum(answer.correct for answer in self.answers)

    @property
    def score(self) -> float:
        """Their share, 0 to 1."""
        return self.correct / len(self.answers) if self.answers else 0.0

    @property
    def completion_tokens(self) -> int:
        """Tokens generated in all answers."""
        return sum(answer.completion.completion_tokens for answer in self.answers)

    @property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Kind → (correct, asked)."""
        groups: dict[str, list[bool]] = defaultdict(list)
        for answer in self.answers:
            groups[answer.problem.kind].append(answer.correct)
        return {kind: (sum(marks), len(marks)) for kind, marks in groups.items()}


def read_problems(path: str | Path) -> list[Problem]:
    """Problems from a JSON Lines file: {"question": ..., "answer": ..., "kind": optional}.

    Raises RequestError when the file cannot be read or a line is something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}", "a JSON Lines file") from error
    problems = [
        _parse_problem(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not problems:
        raise RequestError(f"{path} holds no problems", "at least one line")
    return problems


def _parse_problem(line: str, place: str) -> Problem:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    fields = ("question", "answer")
    if not isinstance(found, dict) or not all(isinstance(found.get(f), str) for f in fields):
        raise RequestError(f"{place} is {line!r:.80}", '{"question": "...", "answer": "..."}')
    return Problem(found["question"], found["answer"], str(found.get("kind", "")))


def is_correct(text: str, answer: str) -> bool:
    """Whether an answer's text gives the known answer: the text itself, or the number in it."""
    return text.strip() == answer.strip() or parse_number(text) == parse_number(answer) is not None


def parse_number(text: str) -> str | None:
    r"""The number an answer gives: in \boxed{}, else bold, else the last one; None without one."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    number = r"-?[0-9]+(?:\.[0-9]+)?"
    for pattern in (
        rf"\\boxed\{{\s*({number})\s*\}}",
        rf"\*\*\s*({number})\s*\*\*",
        rf"({number})",
    ):
        found = re.findall(pattern, plain)
        if found:
            whole, _, fraction = found[-1].lstrip("-").partition(".")
            digits = (whole.lstrip("0") or "0") + f".{fraction}".rstrip("0").rstrip(".")
            return f"-{digits}" if found[-1].startswith("-") and digits != "0" else digits
    return None


def evaluate(
    model: LLM,
    problems: Sequence[Problem],
    max_tokens: int = 1024,
    progress: Callable[[Answer], None] | None = None,
) -> Report:
    """Asks every problem greedily, all in one continuously filled batch.

    max_tokens bounds an answer (less when the context is shorter). progress is called with each
    answer as it is finished.
    """
    prompts = [ask(model, problem.question) for problem in problems]
    room = model.engine.context_length - max(map(len, prompts), default=0)
    params = SamplingParams(max_tokens=max(1, min(max_tokens, room)))
    completions = [Completion() for _ in problems]
    answers: dict[int, Answer] = {}
    start = perf_counter()
    for chunk in model.stream(prompts, params) if prompts else ():
        completion = completions[chunk.index]
        completion.add(chunk)
        if chunk.finish_reason:
            problem = problems[chunk.index]
            answer = Answer(problem, completion, is_correct(completion.text, problem.answer))
            answers[chunk.index] = answer
            if progress:
                progress(answer)
    return Report([answers[i] for i in range(len(problems))], perf_counter() - start)


def ask(model: LLM, question: str) -> list[int]:
    """The prompt's token ids: a chat turn, or the plain question when there is no template."""
    if model.tokenizer.has_chat_template:
        return model.encode([{"role": "user", "content": question}])
    return model.encode(question)
