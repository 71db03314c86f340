"""Exact-match evaluation: ask, and see whether the answer is one of the known right ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from time import perf_counter
from typing import TYPE_CHECKING

from deepmnn.engine.completion import Completion
from deepmnn.errors import RequestError, shown
from deepmnn.measure.match import pattern_fault
from deepmnn.measure.problems import Problem, patterns
from deepmnn.text.limited_process import LimitError
from deepmnn.text.sampling_params import SamplingParams

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM

MAX_TOKENS = 1024
"""Of an answer, unless somebody says otherwise."""


class Verdict(StrEnum):
    """What became of an answer."""

    RIGHT = "right"
    WRONG = "wrong"
    CUT_OFF = "cut off"
    """It is not right so far, and ends where max_tokens or the context does."""
    UNJUDGED = "not judged"
    """The problem's regular expression takes too long on it."""


@dataclass(frozen=True)
class Answer:
    """What the model said to a problem, and what that is worth."""

    problem: Problem
    completion: Completion
    verdict: Verdict

    @property
    def correct(self) -> bool:
        """Whether it is right."""
        return self.verdict is Verdict.RIGHT


@dataclass
class Report:
    """The outcome. seconds: wall time of the whole run."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def counts(self) -> dict[Verdict, int]:
        """Answers of each verdict, of all four."""
        found = Counter(answer.verdict for answer in self.answers)
        return {verdict: found[verdict] for verdict in Verdict}

    @property
    def correct(self) -> int:
        """Problems answered right."""
        return self.counts[Verdict.RIGHT]

    @property
    def score(self) -> float:
        """Their share of all that were asked, 0 to 1."""
        return self.correct / len(self.answers) if self.answers else 0.0

    @property
    def completion_tokens(self) -> int:
        """Tokens generated in all answers."""
        return sum(answer.completion.completion_tokens for answer in self.answers)

    @property
    def by_kind(self) -> dict[str, Report]:
        """Kind → its answers."""
        groups: dict[str, Report] = defaultdict(Report)
        for answer in self.answers:
            groups[answer.problem.kind].answers.append(answer)
        return dict(groups)


def evaluate(
    model: LLM,
    problems: Sequence[Problem],
    params: SamplingParams | None = None,
    progress: Callable[[Answer], None] | None = None,
) -> Report:
    """Asks every problem, all in one continuously filled batch.

    Args:
        model: what is asked.
        problems: `read_problems` reads them from a file.
        params: how answers are drawn; by default greedily, of at most MAX_TOKENS tokens.
        progress: called with each answer as it is finished.

    What the model writes between <think> and </think> is no part of its answer.

    Raises RequestError for a regular expression that is none, and as `LLM.generate`, before
    anything is asked.
    """
    _check_patterns(problems)
    asked = [ask(model, problem.question) for problem in problems]
    wanted = replace(params or SamplingParams(max_tokens=MAX_TOKENS), n=1)
    answers: dict[int, Answer] = {}
    judged = _Judge()
    start = perf_counter()
    for chunk in model.stream(asked, wanted, whole=True) if asked else ():
        completion = Completion()
        completion.add(chunk)
        answer = judged.answer(problems[chunk.index], completion)
        answers[chunk.index] = answer
        if progress:
            progress(answer)
    return Report([answers[i] for i in range(len(problems))], perf_counter() - start)


def ask(model: LLM, question: str) -> list[int]:
    """The prompt's token ids: a chat turn, or the plain question when there is no template."""
    if model.tokenizer.has_chat_template:
        return model.encode([{"role": "user", "content": question}])
    return model.encode(question)


def judge_answer(problem: Problem, completion: Completion) -> Verdict:
    """What an answer is worth. Raises LimitError where a regular expression takes too long."""
    complete = completion.finish_reason != "length"
    if problem.is_right(completion.text, complete=complete):
        return Verdict.RIGHT
    return Verdict.WRONG if complete else Verdict.CUT_OFF


class _Judge:
    """Judges answers; a problem whose regular expression took too long is not tried again."""

    def __init__(self) -> None:
        self._slow: set[tuple[str, ...]] = set()

    def answer(self, problem: Problem, completion: Completion) -> Answer:
        verdict = Verdict.UNJUDGED
        if problem.answers not in self._slow:
            try:
                verdict = judge_answer(problem, completion)
            except LimitError:
                self._slow.add(problem.answers)
        return Answer(problem, completion, verdict)


def _check_patterns(problems: Sequence[Problem]) -> None:
    """Raises RequestError unless every regular expression is one."""
    for pattern in patterns(problems):
        try:
            fault = pattern_fault(pattern)
        except LimitError as error:
            fault = str(error)
        if fault is not None:
            raise RequestError(
                f"the answer {shown(pattern)} is no regular expression: {fault:.100}",
                "a pattern of Python's re",
            )
