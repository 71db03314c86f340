"""Arithmetic problems in plain English with worked, R1-style answers.

The generator behind tiny-r1: `sample(rng)` draws a training problem, `sample_held_out(rng)` one
that training never sees. The split is a hash of the expression itself, so it holds across
phrasings, across runs, and for every operation worked on the way (`Problem.steps`): a held-out sum
is not even a sub-step of a training problem.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from column_arithmetic import Expr, Working

KINDS = ("add", "subtract", "multiply", "long_multiply", "two_step", "story")
HELD_OUT_ONE_IN = 16
"""One expression in this many is kept out of training."""


@dataclass(frozen=True)
class Problem:
    """One question with its worked answer.

    `steps` are the single operations (`"84 - 30"`) worked on the way to `answer`, the problem's
    own included.
    """

    kind: str
    expression: str
    question: str
    reasoning: str
    answer: str
    steps: tuple[str, ...] = ()

    @property
    def final(self) -> str:
        """What follows the reasoning: the part of an answer later turns of a chat still see."""
        return f"The answer is **{self.answer}**." if self.kind in KINDS else self.answer

    @property
    def response(self) -> str:
        """The whole answer in R1's format, as it follows `<｜Assistant｜>`."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.final}"


@dataclass(frozen=True)
class Conversation:
    """A chat ending with `problem`; earlier turns are `(question, answer)` without reasoning."""

    system: str
    earlier: tuple[tuple[str, str], ...]
    problem: Problem


# ---------------------------------------------------------------- the split


def canonical(expression: str) -> str:
    """One name for an expression and its commuted twin: `347 + 285` and `285 + 347` are one."""
    parts = expression.split(" ")
    if len(parts) == 3 and parts[1] in "+*":
        low, high = sorted((int(parts[0]), int(parts[2])))
        return f"{low} {parts[1]} {high}"
    return expression


def _in_held_out_share(expression: str) -> bool:
    if all(len(number) == 1 for number in re.findall(r"\d+", expression)):
        return False  # a single-digit fact is part of everybody's column working
    digest = hashlib.sha256(canonical(expression).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def is_held_out(problem: Problem) -> bool:
    """Whether this problem, in any phrasing, belongs to the held-out set."""
    return problem.kind in KINDS and _in_held_out_share(problem.expression)


def is_trainable(problem: Problem) -> bool:
    """Neither held out nor worked by way of a held-out operation."""
    return not is_held_out(problem) and not any(map(_in_held_out_share, problem.steps))


def parse_answer(text: str) -> str | None:
    """The bold number after the reasoning, else the last one there; None without any."""
    final = text.rpartition("</think>")[2].replace(",", "")
    numbers = re.findall(r"\*\*\s*(-?\d+)\s*\*\*", final) or re.findall(r"-?\d+", final)
    return str(int(numbers[-1])) if numbers else None


# ---------------------------------------------------------------- questions

ASK = (
    "What is {e}?",
    "What is {e}?",
    "{e}",
    "{e} = ?",
    "Compute {e}.",
    "Calculate {e}.",
    "How much is {e}?",
    "Please work out {e}.",
    "Can you compute {e}?",
    "Solve {e}.",
)
ASK_IN_WORDS = {
    "+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "What is {a} plus {b}?"),
    "-": ("Subtract {b} from {a}.", "What is {a} minus {b}?", "Take {b} away from {a}."),
    "*": ("Multiply {a} by {b}.", "What is {a} times {b}?", "What is the product of {a} and {b}?"),
}
FOLLOW_UPS = {
    "+": ("Now add {b}.", "Add {b} to that.", "And plus {b}?"),
    "-": ("Now subtract {b}.", "Subtract {b} from that.", "And minus {b}?"),
    "*": ("Now multiply that by {b}.", "Multiply it by {b}.", "And times {b}?"),
}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful calculator.",
    "Answer the question.",
)
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Leo", "Maria", "Noah", "Olga", "Tom")
ITEMS = (
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "marbles",
    "oranges",
    "pens",
    "shells",
    "stamps",
)

CHAT: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("Hello!", "Hi", "Hey", "Hello", "Hi there!", "Good morning!"),
        "This is a greeting, there is nothing to compute.",
        "Hello! Give me a sum and I will work it out.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What can you do?", "Help"),
        "This is a question about me.",
        "I am tiny-r1, a very small reasoning model. I add, subtract and multiply, step by step.",
    ),
    (
        ("Thanks!", "Thank you.", "Thanks", "Great, thank you!", "Good job!"),
        "This is a thank you, there is nothing to compute.",
        "You are welcome!",
    ),
)


def _ask(rng: random.Random, expr: Expr) -> str:
    """A question for `expr`, in symbols or in words, typed the way people type."""
    if isinstance(expr.left, int) and isinstance(expr.right, int) and rng.random() < 0.35:
        question = rng.choice(ASK_IN_WORDS[expr.op]).format(a=expr.left, b=expr.right)
    else:
        symbols = str(expr)
        symbols = symbols.replace("*", rng.choice(("*", "*", "x", "×")))
        if rng.random() < 0.15:
            symbols = symbols.replace(" ", "")
        question = rng.choice(ASK).format(e=symbols)
    return _retype(rng, question)


def _retype(rng: random.Random, question: str) -> str:
    if rng.random() < 0.15:
        question = question.rstrip(" .?=")
    return question.lower() if rng.random() < 0.1 else question


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _operands(rng: random.Random) -> tuple[int, int]:
    """Operands of a sum or a difference: up to four digits, three most of the time."""
    widths = rng.choices((1, 2, 3, 4), weights=(8, 30, 50, 12), k=2)
    a, b = _number(rng, widths[0]), _number(rng, widths[1])
    shape = rng.random()
    if shape < 0.2:  # close numbers: long borrows, comparisons that take every digit
        b = max(0, a + rng.randrange(-40, 41))
    elif shape < 0.35:  # shared digits: a borrow that an equal pair of digits passes on
        pairs = zip(str(a), str(b).zfill(len(str(a))), strict=False)
        b = int("".join(x if rng.random() < 0.5 else y for x, y in pairs))
    return a, b


def _add(rng: random.Random) -> Expr:
    return Expr("+", *_operands(rng))


def _subtract(rng: random.Random) -> Expr:
    a, b = _operands(rng)
    return Expr("-", max(a, b), min(a, b)) if rng.random() < 0.4 else Expr("-", a, b)


def _multiply(rng: random.Random) -> Expr:
    a, b = _number(rng, rng.choices((1, 2, 3), weights=(12, 48, 40))[0]), rng.randrange(10)
    return Expr("*", b, a) if rng.random() < 0.25 else Expr("*", a, b)


def _long_multiply(rng: random.Random) -> Expr:
    return Expr("*", _number(rng, 2), _number(rng, 2))


def _two_step(rng: random.Random) -> Expr:
    shape = rng.randrange(6)
    product = Expr("*", _number(rng, 2), rng.randrange(2, 10))
    c = _number(rng, rng.choice((1, 2, 2, 3)))
    a, b = _number(rng, 2), _number(rng, rng.choice((1, 2)))
    if shape == 0:
        return Expr("+", product, c)
    if shape == 1:
        return Expr("-", product, c)
    if shape == 2:
        return Expr("+", c, product)
    if shape == 3:
        return Expr("*", Expr(rng.choice("+-"), max(a, b), min(a, b)), rng.randrange(2, 10))
    a, b = max(a, c), min(a, c)
    return Expr(rng.choice("+-"), Expr(rng.choice("+-"), a, b), _number(rng, 2))


STORIES: tuple[tuple[str, str], ...] = (
    ("a + b", "{N} has {a} {items} and buys {b} more. How many {items} does {N} have now?"),
    ("a + b", "A library has {a} books and gets {b} new ones. How many books is that?"),
    ("a + b", "{N} drives {a} km and then {b} km. How far is that in total?"),
    ("a - b", "{N} has {a} {items} and gives away {b}. How many {items} are left?"),
    ("a - b", "A train has {a} seats and {b} are taken. How many seats are free?"),
    ("a * c", "There are {a} boxes with {c} {items} in each. How many {items} are there?"),
    ("a * c", "{N} reads {a} pages a day for {c} days. How many pages is that?"),
    ("a * c", "One ticket costs {a} dollars. How much do {c} tickets cost?"),
    ("a * c - d", "{N} buys {a} bags of {c} {items} and loses {d}. How many {items} are left?"),
    (
        "a * c + d",
        "{N} buys {a} {items} for {c} dollars each and a bag for {d} dollars. How much is that?",
    ),
    ("a + b - d", "{N} has {a} {items}, finds {b} more and sells {d}. How many {items} are left?"),
    (
        "(a + b) * c",
        "{N} packs {a} {items} and {b} pears every day. How much fruit is that in {c} days?",
    ),
)


def _story(rng: random.Random) -> tuple[Expr, str]:
    shape, text = rng.choice(STORIES)
    digits = 2 if "*" in shape else rng.choice((2, 3))
    a, b, c, d = _number(rng, digits), _number(rng, 2), rng.randrange(2, 10), _number(rng, 2)
    if "- b" in shape:
        a, b = max(a, b), min(a, b)
    d = min(d, a * c if "* c" in shape else a + b)
    trees: dict[str, Expr] = {
        "a + b": Expr("+", a, b),
        "a - b": Expr("-", a, b),
        "a * c": Expr("*", a, c),
        "a * c - d": Expr("-", Expr("*", a, c), d),
        "a * c + d": Expr("+", Expr("*", a, c), d),
        "a + b - d": Expr("-", Expr("+", a, b), d),
        "(a + b) * c": Expr("*", Expr("+", a, b), c),
    }
    words = {"N": rng.choice(NAMES), "items": rng.choice(ITEMS)}
    if "fruit" in text:
        words["items"] = rng.choice(("apples", "oranges"))
    return trees[shape], text.format(a=a, b=b, c=c, d=d, **words)


def work(kind: str, expr: Expr, question: str) -> Problem:
    """The worked problem for an expression, however it is asked."""
    working = Working()
    value = working.solve(expr)
    reasoning = "\n".join(working.lines)
    return Problem(kind, str(expr), question, reasoning, str(value), tuple(working.steps))


_EXPRESSIONS: dict[str, Callable[[random.Random], Expr]] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "long_multiply": _long_multiply,
    "two_step": _two_step,
}


def draw(rng: random.Random, kind: str | None = None) -> Problem:
    """Any problem, whichever side of the split it falls on; of one kind, or of a mixture of all."""
    if kind is None:
        kind = rng.choices(KINDS, weights=(14, 34, 10, 8, 24, 10))[0]
    if kind == "story":
        expr, question = _story(rng)
    else:
        expr = _EXPRESSIONS[kind](rng)
        question = _ask(rng, expr)
    return work(kind, expr, question)


def _first(
    rng: random.Random, accept: Callable[[Problem], bool], make: Callable[[random.Random], Problem]
) -> Problem:
    while not accept(problem := make(rng)):
        pass
    return problem


def sample(rng: random.Random, kind: str | None = None) -> Problem:
    """A training problem."""
    return _first(rng, is_trainable, lambda r: draw(r, kind))


def sample_held_out(rng: random.Random, kind: str | None = None) -> Problem:
    """A problem that `sample` never returns, in any phrasing."""
    return _first(rng, is_held_out, lambda r: draw(r, kind))


def held_out_set(per_kind: int = 150) -> list[Problem]:
    """The held-out problems tiny-r1 is scored on: always the same ones, no expression twice."""
    rng = random.Random(20)
    problems: dict[str, Problem] = {}
    for kind in KINDS:
        wanted = len(problems) + per_kind
        while len(problems) < wanted:
            problem = sample_held_out(rng, kind)
            problems.setdefault(problem.expression, problem)
    return list(problems.values())


def _chat(rng: random.Random) -> Problem:
    questions, reasoning, answer = rng.choice(CHAT)
    return Problem("chat", "", _retype(rng, rng.choice(questions)), reasoning, answer)


def _follow_up(rng: random.Random, before: Problem) -> Problem:
    """A question about the answer before it: `Now add 15.`"""
    a = int(before.answer)
    op = rng.choice("+-*") if a < 1000 else rng.choice("+-")
    b = rng.randrange(2, 10) if op == "*" else _number(rng, rng.choice((1, 2, 2, 3)))
    question = rng.choice(FOLLOW_UPS[op]).format(b=b)
    return work("two_step", Expr(op, a, b), question)


def sample_conversation(rng: random.Random) -> Conversation:
    """A training chat of one to three turns; most have one."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.04 else ""
    turns: Sequence[Problem] = [
        _chat(rng) if rng.random() < 0.02 else sample(rng)
        for _ in range(rng.choices((1, 2, 3), (84, 12, 4))[0])
    ]
    last = turns[-1]
    if len(turns) > 1 and rng.random() < 0.4:
        before = turns[-2]
        if before.kind in KINDS and 0 <= int(before.answer) < 10000:
            last = _first(rng, is_trainable, lambda r: _follow_up(r, before))
    gap = rng.choice(
        ("\n\n", "")
    )  # clients return an answer with or without its leading blank line
    return Conversation(system, tuple((t.question, gap + t.final) for t in turns[:-1]), last)
