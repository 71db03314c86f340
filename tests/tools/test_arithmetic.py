"""The problem generator: every worked line is true, and nothing held out can reach training."""

from __future__ import annotations

import json
import operator
import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import arithmetic as ar
import column_arithmetic as columns

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def value(expression: str) -> int:
    """The value of an expression such as `4 * 6 + 4`, by Python's own arithmetic."""
    assert re.fullmatch(r"[\d +*()-]+", expression), expression
    return int(eval(expression, {"__builtins__": {}}))


def check_line(line: str) -> None:
    """Every equation in a line holds, and a column writes and carries what it computed."""
    for equation in re.findall(r"\d[\d +*-]*(?: = -?\d[\d +*-]*)+", line):
        left, *rights = equation.split(" = ")
        for right in rights:
            assert value(left) == value(right), line
    for x, sign, y in re.findall(r"(\d) ([<>]) (\d)", line):
        assert (int(x) < int(y)) == (sign == "<"), line
        assert x != y, line
    if written := re.search(r"= (\d+)\. Write (\d+)(?:, carry (\d+))?\.", line):
        total, digit, carry = (int(group or 0) for group in written.groups())
        assert total == 10 * carry + digit or total == digit, line


@pytest.mark.parametrize("kind", ar.KINDS)
def test_every_worked_line_is_true(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(800):
        problem = ar.draw(rng, kind)
        assert int(problem.answer) == value(problem.expression)
        assert problem.reasoning.startswith(f"I need {problem.expression}.")
        assert problem.reasoning.endswith(f" = {problem.answer}.")
        for line in problem.reasoning.split("\n"):
            check_line(line)


def test_columns_spell_the_result() -> None:
    """The digits written, read from the last column to the first, are the sum."""
    rng = random.Random(2)
    for _ in range(800):
        a, b = rng.randrange(10000), rng.randrange(10000)
        working = columns.Working()
        assert working.operate("+", a, b) == a + b
        written = re.findall(r"Write (\d+)", "\n".join(working.lines))
        assert int("".join(reversed(written))) == a + b
        working = columns.Working()
        assert working.operate("-", max(a, b), min(a, b)) == abs(a - b)
        digits = re.findall(r"^\w+: .*(\d)\.$", "\n".join(working.lines[:-1]), re.MULTILINE)
        assert int("".join(reversed(digits))) == abs(a - b)


@pytest.mark.parametrize(
    ("op", "a", "b"), [("-", 285, 542), ("-", 1000, 1), ("*", 0, 47), ("*", 6, 347), ("*", 99, 90)]
)
def test_awkward_operands(op: str, a: int, b: int) -> None:
    problem = ar.work("add", columns.Expr(op, a, b), "")
    assert int(problem.answer) == OPERATIONS[op](a, b)
    for line in problem.reasoning.split("\n"):
        check_line(line)


def test_example_reads_as_documented() -> None:
    problem = ar.work("add", columns.Expr("+", 347, 285), "What is 347 + 285?")
    assert columns.__doc__ is not None
    documented = [line.strip() for line in columns.__doc__.split("\n") if line.startswith("    ")]
    assert problem.reasoning.split("\n") == documented
    assert problem.response.startswith("<think>\nI need 347 + 285.\n")
    assert problem.response.endswith("\nSo 347 + 285 = 632.\n</think>\n\nThe answer is **632**.")


def test_questions_hold_the_operands() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        problem = ar.draw(rng)
        asked = sorted(re.findall(r"\d+", problem.question))
        assert asked == sorted(re.findall(r"\d+", problem.expression)), problem.question


def test_training_never_meets_a_held_out_operation() -> None:
    rng = random.Random(4)
    held_out = {ar.canonical(ar.sample_held_out(rng).expression) for _ in range(800)}
    for _ in range(8000):
        chat = ar.sample_conversation(rng)
        assert not ar.is_held_out(chat.problem)
        seen = {ar.canonical(step) for step in (chat.problem.expression, *chat.problem.steps)}
        assert not seen & held_out


@pytest.mark.slow
def test_training_text_never_states_a_held_out_sum() -> None:
    """Not even as an equation in the middle of a longer answer."""
    rng = random.Random(5)
    held_out = {ar.canonical(ar.sample_held_out(rng).expression) for _ in range(5000)}
    for _ in range(4000):
        for a, op, b in re.findall(r"So (\d+) ([+*-]) (\d+) =", ar.sample(rng).reasoning):
            assert ar.canonical(f"{a} {op} {b}") not in held_out


def test_split_ignores_phrasing_and_order() -> None:
    for a, b in ((347, 285), (12, 9), (60, 7)):
        for op in "+*":
            one = ar.work("add", columns.Expr(op, a, b), "One way of asking")
            other = ar.work("story", columns.Expr(op, b, a), "and another")
            assert ar.is_held_out(one) == ar.is_held_out(other)


def test_same_seed_same_problems() -> None:
    first, second = (
        [ar.sample_conversation(random.Random(6)) for _ in range(20)] for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\n7 + 5 = 12\n</think>\n\nThe answer is **632**.", "632"),
        ("The answer is **-57**.", "-57"),
        ("<think>1</think> 632", "632"),
        ("It is 1,234.", "1234"),
        ("First 12, then 84, so **54** it is, not 55.", "54"),
        ("<think>\n7 + 5 = 12\n</think>\n\nHello!", None),
        ("", None),
    ],
)
def test_parse_answer(text: str, answer: str | None) -> None:
    assert ar.parse_answer(text) == answer


def test_every_response_parses_to_its_answer() -> None:
    rng = random.Random(7)
    for _ in range(800):
        problem = ar.draw(rng)
        assert ar.parse_answer(problem.response) == problem.answer


def test_the_bundled_set_is_the_held_out_set() -> None:
    """What ships beside the weights is what this generator keeps out of training."""
    path = Path(__file__).parents[2] / "src" / "deepmnn" / "tiny_r1" / "held_out.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    problems = ar.held_out_set()
    assert len(lines) >= 600
    assert all(map(ar.is_held_out, problems))
    assert [(line["question"], line["answer"]) for line in lines] == [
        (problem.question, problem.answer) for problem in problems
    ]
