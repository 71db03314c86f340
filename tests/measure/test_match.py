from __future__ import annotations

import time

import pytest

from deepmnn.measure.match import (
    contains,
    default_match,
    is_number,
    matches,
    parse_choice,
    parse_number,
    pattern_fault,
)
from deepmnn.text.limited_process import LimitError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is **632**.", "632"),
        ("347 + 285 = 632", "632"),
        ("**12** and then **-7** of 9", "-7"),
        (r"So \boxed{ 1,234,567 }, or **5**.", "1234567"),
        (r"\boxed{x = 42\text{ cm}} of 9", "42"),
        (r"\boxed{\frac{1}{2}} 7", "2"),
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
        ("The answer is 42, since 6 * 7 is more than 40.", "42"),
        ("The answer is: 4 apples for 3 children", "4"),
        ("**Answer: $1,200.00.** There are 3 ways.", "1200"),
        ("**42 apples** for 7 people", "42"),
        ("**2. Add them** 3 + 4 = 7", "7"),
        ("7 - 3", "3"),
        ("from 3-4", "4"),
        ("it is −5", "-5"),
        ("答案是４２。还有 7", "42"),
        ("等于42", "42"),
        ("The area of H2O is 5 m2", "5"),
        ("#### 18", "18"),
        ("v1.2", None),
    ],
)
def test_parse_number(text: str, number: str | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("First 77 * 5 = 38", None),
        ("So the answer is 12", None),
        ("The answer is **385**. To check, 77 * 5", "385"),
        ("The answer is 385. To check, 77 ", "385"),
    ],
)
def test_of_a_text_that_was_cut_off_only_a_marked_number_counts(
    text: str, number: str | None
) -> None:
    assert parse_number(text, complete=False) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("**B**", "B"),
        ("B) Paris", "B"),
        ("B", "B"),
        (" b ", None),
        ("B. Paris, not A. Rome", "B"),
        ("(C)", "C"),
        ("Answer: D", "D"),
        ("answer: d", "D"),
        ("The answer is b) Paris", "B"),
        ("The answer is a city in France, so (C).", "C"),
        ("The correct answer is option C, because A is too small.", "C"),
        ("**Answer: A**", "A"),
        ("**Answer:** A", "A"),
        (r"Thus $\boxed{\text{B}}$, not A.", "B"),
        (r"\boxed{(E)}", "E"),
        ("答案是B", "B"),
        ("答案：（C）", "C"),
        ("选D。", "D"),
        ("应该选择B选项", "B"),
        ("Let us see: Paris is in France.\n\nC", "C"),
        ("A cat is an animal, so it must be D.", "D"),
        ("I think that B is right", "B"),
        ("First the answer is A. But no: the answer is B.", "B"),
        ("It may be (A) or (B).", None),
        ("neither B nor C", None),
        ("A dog", None),
        ("Paris", None),
        ("", None),
    ],
)
def test_parse_choice(text: str, letter: str | None) -> None:
    assert parse_choice(text) == letter


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("the capital is **PARIS**!", "Paris", True),
        ("It is Parisian", "Paris", False),
        ("comparison", "Paris", False),
        ("New\n York, of course", "New York", True),
        ("York, New", "New York", False),
        ("Antoine de Saint-Exupéry", "saint exupéry", True),
        ("O’Brien wrote it", "O'Brien", True),
        ("It is written in C++.", "C", False),
        ("It is written in C++.", "C++", True),
        ("in C# and F#", "C#", True),
        ("version 12", "1", False),
        ("_Paris_ or `Rome`", "Rome", True),
        ("法国的首都是巴黎。", "巴黎", True),
        ("答案是Paris吗？是Paris。", "Paris", True),
        ("法国的首都是巴黎。", "伦敦", False),
        ("수도는 파리입니다", "파리", True),
        ("ＰＡＲＩＳ", "paris", True),
        ("नई दिल्ली भारत की राजधानी है", "नई दिल्ली", True),
        ("STRASSE", "straße", True),
        ("a -> b", "->", True),
        ("a", "!", False),
        ("", "Paris", False),
        ("anything", "  ", False),
    ],
)
def test_contains(text: str, answer: str, found: bool) -> None:
    assert contains(text, answer) is found


def test_numbers_by_themselves() -> None:
    for answer in ("42", " -3.50 ", "1,234", "$5", "€ 5", "50%", "４２", "−1"):
        assert is_number(answer), answer
    for answer in ("Paris", "", "4 apples", "1/2", "1 2", "twelve", "12:30", "B2"):
        assert not is_number(answer), answer


def test_the_default_is_what_the_answers_are() -> None:
    assert default_match(["42"]) == "number"
    assert default_match(["42", "43.5"]) == "number"
    assert default_match(["42", "forty-two"]) == "contains"
    assert default_match(["B"]) == default_match([" A ", "C"]) == "choice"
    assert default_match(["b"]) == default_match(["K"]) == default_match(["Paris"]) == "contains"


def test_one_of_several_answers_is_enough() -> None:
    assert matches("contains", "It is the UK.", ["United Kingdom", "UK"])
    assert matches("number", "7", ["6", "7.0"])
    assert matches("choice", "(B)", ["A", "B"])
    assert matches("exact", " Paris\n", ["Rome", "Paris "])
    assert not matches("exact", "Paris.", ["Paris"])
    assert matches("regex", "on 14 July 1789", [r"^never$", r"\b1[45] July\b"])
    assert not matches("regex", "in July", [r"1[45] July"])
    assert not matches("number", "no number", ["6"])


def test_patterns_are_checked() -> None:
    assert pattern_fault(r"(a|b)+\d{2}") is None
    for wrong in ("(", "[z-a]", "a{99999999999999999999}", "(?P<x>a)(?P<x>b)", "*"):
        assert pattern_fault(wrong), wrong


def test_a_pattern_that_explodes_is_stopped() -> None:
    begin = time.monotonic()
    with pytest.raises(LimitError, match="seconds of processor time"):
        matches("regex", "a" * 60 + "!", [r"^(a+)+$"])
    assert time.monotonic() - begin < 55
    assert matches("regex", "abc", ["b"]), "the next one has a new process"


@pytest.mark.parametrize(
    "piece",
    ["a", "1", "**", "(", "\\boxed{", "answer is ", " ", "\n", "-", "A", "1,", "选", "$", "{"],
)
def test_long_answers_of_one_kind_take_no_time(piece: str) -> None:
    begin = time.process_time()
    for text in (piece * 20_000, "answer is" + piece * 20_000 + "!", "**" + piece * 20_000):
        parse_number(text)
        parse_choice(text)
        contains(text, "Paris")
    assert time.process_time() - begin < 5
