from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest

import deepmnn
from deepmnn import LLM, Completion, SamplingParams
from deepmnn.conversion.bundled import HELD_OUT
from deepmnn.errors import RequestError, StorageError
from deepmnn.measure import evaluate as module
from deepmnn.measure.answer_file import AnswerFile
from deepmnn.measure.evaluate import Answer, Report, Verdict, evaluate, judge_answer
from deepmnn.measure.match import parse_number
from deepmnn.measure.problems import Problem, read_problems
from deepmnn.text import limited_process
from deepmnn.text.limited_process import LimitError

SHORT = SamplingParams(max_tokens=6)


def problem(question: str, answer: str, kind: str = "", match: str = "exact") -> Problem:
    return Problem(question, (answer,), kind, match)


def test_a_report_adds_up(artifact: Path) -> None:
    model = deepmnn.load(artifact, "reference")
    problems = [problem(f"{i}?", "no such answer", "ab"[i % 2]) for i in range(5)]
    first = evaluate(model, problems, SHORT)
    # What the model does answer becomes the right answer of three of them.
    said = [answer.completion.text for answer in first.answers]
    problems[:3] = [problem(p.question, said[i], p.kind) for i, p in enumerate(problems[:3])]
    seen: list[Answer] = []
    report = evaluate(model, problems, SHORT, progress=seen.append)
    assert [answer.problem for answer in report.answers] == problems
    assert [answer.completion.text for answer in report.answers] == said
    assert sorted(map(id, seen)) == sorted(map(id, report.answers))
    assert (report.correct, report.score) == (3, 0.6)
    assert {k: (r.correct, len(r.answers)) for k, r in report.by_kind.items()} == {
        "a": (2, 3),
        "b": (1, 2),
    }
    assert report.completion_tokens == sum(len(a.completion.ids) for a in report.answers)
    assert evaluate(model, []).score == 0.0


def completion(text: str, finish_reason: str = "stop", reasoning: str = "") -> Completion:
    return Completion(text=text, reasoning=reasoning, finish_reason=finish_reason)


def test_verdicts() -> None:
    paris = Problem("Capital?", ("Paris",))
    number = Problem("6 * 7?", ("42",))
    for asked, said, verdict in (
        (paris, completion("The capital of France is Paris."), Verdict.RIGHT),
        (paris, completion("Rome."), Verdict.WRONG),
        (paris, completion("The capital of", "length"), Verdict.CUT_OFF),
        (paris, completion("Paris, which lies", "length"), Verdict.RIGHT),
        (paris, completion("", "length", reasoning="Is it Paris?"), Verdict.CUT_OFF),
        (paris, completion("Rome", reasoning="Is it Paris?"), Verdict.WRONG),
        (number, completion("6 * 7 = 42"), Verdict.RIGHT),
        (number, completion("6 * 7 = 42", "length"), Verdict.CUT_OFF),
        (number, completion("**42**, for", "length"), Verdict.RIGHT),
    ):
        assert judge_answer(asked, said) is verdict, said


def test_answers_that_are_cut_off_count_apart(model: LLM) -> None:
    report = evaluate(model, [problem("x", "no such answer")] * 3, SamplingParams(max_tokens=1))
    assert report.counts[Verdict.CUT_OFF] == 3
    assert (report.counts[Verdict.WRONG], report.score) == (0, 0.0)


def test_a_pattern_that_takes_too_long_is_tried_once(
    model: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    inner = Problem.is_right

    def limited(self: Problem, text: str, *, complete: bool = True) -> bool:
        tried.append(self.answers[0])
        if self.answers[0] == "^(a+)+$":  # what becomes of it: test_match.py
            raise LimitError("takes more than 5 seconds of processor time")
        return inner(self, text, complete=complete)

    monkeypatch.setattr(Problem, "is_right", limited)
    slow, quick = Problem("x", ("^(a+)+$",), match="regex"), Problem("y", ("",), match="regex")
    report = evaluate(model, [slow, quick, slow, slow], SHORT)
    assert sorted(tried) == ["", "^(a+)+$"]
    verdicts = [str(answer.verdict) for answer in report.answers]
    assert verdicts == ["not judged", "right", "not judged", "not judged"]


def test_what_is_no_pattern_is_refused_before_anything_is_asked(
    model: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LLM, "stream", None)
    with pytest.raises(RequestError, match=r"'\(' is no regular expression"):
        evaluate(model, [Problem("x", ("(",), match="regex")])
    assert limited_process.CPU_SECONDS <= 10
    assert module.MAX_TOKENS >= 512


def test_every_answer_is_kept(tmp_path: Path, model: LLM) -> None:
    path = tmp_path / "answers.jsonl"
    problems = [problem("巴黎?", "x", "k"), Problem("2 + 2?", ("4", "5"))]
    with AnswerFile(path) as file:
        report = evaluate(model, problems, SHORT, progress=file.add)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2, "they are there before the file is closed"
    assert "巴黎" in path.read_text(encoding="utf-8")
    found = {line["question"]: line for line in map(json.loads, lines)}
    for answer in report.answers:
        said = answer.completion
        assert found[answer.problem.question] == {
            "question": answer.problem.question,
            "kind": answer.problem.kind,
            "answer": said.text,
            "reasoning": said.reasoning,
            "expected": list(answer.problem.answers),
            "match": answer.problem.match,
            "verdict": answer.verdict.value,
            "finish_reason": said.finish_reason,
            "prompt_tokens": said.prompt_tokens,
            "completion_tokens": said.completion_tokens,
        }
    with pytest.raises(StorageError, match=r"answers\.jsonl exists"):
        AnswerFile(path)
    for nowhere in (tmp_path / "no" / "file", tmp_path / "a\0b"):
        with pytest.raises(StorageError, match="cannot be written"):
            AnswerFile(nowhere)


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_answers_on_a_full_disk(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda *args, **flags: FullDisk())
    file = AnswerFile(Path("full"))
    with pytest.raises(StorageError, match=r"full cannot be written: .*No space left"):
        evaluate(model, [problem("x", "y")] * 9, SHORT, progress=file.add)
    assert len(evaluate(model, [problem("x", "y")], SHORT).answers) == 1, "the model is free again"


def test_held_out_problems_are_read() -> None:
    problems = read_problems(HELD_OUT)
    assert len(problems) >= 100
    assert {problem.match for problem in problems} == {"number"}
    assert all(parse_number(p.answers[0]) == p.answers[0] for p in problems)


def test_problems_are_read(tmp_path: Path) -> None:
    lines = [
        {"question": "a", "answer": "Paris"},
        {"question": "b", "answer": ["UK", "United Kingdom"], "kind": "geo"},
        {"question": "c", "answer": 4.5},
        {"question": "d", "answer": "(B)", "match": "choice"},
        {"question": "e\u2028f", "answer": [1, "2"], "match": "exact"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\ufeff" + "\r\n".join(json.dumps(x, ensure_ascii=False) for x in lines))
    found = read_problems(path)
    assert [(p.answers, p.kind, p.match) for p in found] == [
        (("Paris",), "", "contains"),
        (("UK", "United Kingdom"), "geo", "contains"),
        (("4.5",), "", "number"),
        (("(B)",), "", "choice"),
        (("1", "2"), "", "exact"),
    ]
    path.write_text(json.dumps(lines[0]) + "\n" + json.dumps(lines[3]))
    assert [p.match for p in read_problems(path, "exact")] == ["exact", "choice"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"[]",
        b'{"question": "a"}',
        b'{"question": 1, "answer": "2"}',
        b'{"question": "a", "answer": ""}',
        b'{"question": "a", "answer": []}',
        b'{"question": "a", "answer": ["b", " "]}',
        b'{"question": "a", "answer": true}',
        b'{"question": "a", "answer": null}',
        b'{"question": "a", "answer": "b", "match": "fuzzy"}',
        b'{"question": "a", "answer": "b", "match": 5}',
        b'{"question": "a", "answer": "Paris", "match": "number"}',
        b'{"question": "a", "answer": "Paris", "match": "choice"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_malformed_problems(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(RequestError, match=r"data\.jsonl"):
        read_problems(tmp_path / "data.jsonl")


def test_a_report_of_nothing() -> None:
    assert Report().counts == dict.fromkeys(Verdict, 0)
    assert Report().by_kind == {}
