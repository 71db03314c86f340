from __future__ import annotations

from pathlib import Path

import pytest

import deepmnn
from deepmnn.conversion.bundled import HELD_OUT
from deepmnn.errors import RequestError
from deepmnn.measure.evaluate import Problem, evaluate, is_correct, parse_number, read_problems
from tiny_artifact import tiny_artifact


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is **632**.", "632"),
        ("347 + 285 = 632", "632"),
        ("**12** and then **-7** of 9", "-7"),
        (r"So \boxed{ 1,234,567 }, or **5**.", "1234567"),
        ("about 3.50 m", "3.5"),
        ("2.0", "2"),
        ("1, 2, 3", "3"),
        ("007", "7"),
        ("-0.50", "-0.5"),
        ("-0.0", "0"),
        ("100", "100"),
        ("9" * 5000, "9" * 5000),
        ("none", None),
        ("", None),
    ],
)
def test_parse_number(text: str, number: str | None) -> None:
    assert parse_number(text) == number


def test_is_correct() -> None:
    assert is_correct("It is **42**.", "42")
    assert is_correct(" Paris\n", "Paris")
    assert not is_correct("It is 43.", "42")
    assert not is_correct("I do not know", "Paris")
    assert not is_correct("", "42")


def test_a_report_adds_up(tmp_path: Path) -> None:
    model = deepmnn.load(tiny_artifact(tmp_path), "reference")
    problems = [Problem(f"{i}?", "no such answer", "ab"[i % 2]) for i in range(5)]
    first = evaluate(model, problems, max_tokens=6)
    # What the model does answer becomes the right answer of three of them.
    said = [answer.completion.text for answer in first.answers]
    problems[:3] = [Problem(p.question, said[i], p.kind) for i, p in enumerate(problems[:3])]
    seen = []
    report = evaluate(model, problems, max_tokens=6, progress=seen.append)
    assert [answer.problem for answer in report.answers] == problems
    assert [answer.completion.text for answer in report.answers] == said
    assert sorted(map(id, seen)) == sorted(map(id, report.answers))
    assert (report.correct, report.score) == (3, 0.6)
    assert report.by_kind == {"a": (2, 3), "b": (1, 2)}
    assert report.completion_tokens == sum(len(a.completion.ids) for a in report.answers)
    assert evaluate(model, []).score == 0.0


def test_held_out_problems_are_read() -> None:
    problems = read_problems(HELD_OUT)
    assert len(problems) >= 100
    assert all(parse_number(problem.answer) == problem.answer for problem in problems)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"[]", b'{"question": "a"}', b'{"question": 1, "answer": "2"}', b"\xff"],
)
def test_malformed_problems(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(RequestError, match=r"data\.jsonl"):
        read_problems(tmp_path / "data.jsonl")
