r"""Whether the text of an answer gives the right one.

| match | right when |
|---|---|
| exact | the text is the answer, but for white space around it |
| contains | the answer stands in the text as whole words; case and punctuation do not matter |
| number | the number that the text gives (`parse_number`) is the answer |
| choice | the letter that the text chooses (`parse_choice`) is the answer |
| regex | the answer, a regular expression, is found in the text |
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from deepmnn.text.limited_process import LimitedProcess

MATCHES = ("exact", "contains", "regex", "number", "choice")

_NUMBER = r"(?:(?<![\w)\]])-)?(?<![A-Za-z_0-9])(?<![0-9]\.)[0-9]+(?:\.[0-9]+)?"
_UNIT = r"\s?[^\W\d_]{0,12}[%°]?"
_MONEY = r"[$€£¥]?\s?"
_CUE = r"(?:answer|result)\s?(?:is|are|was|=|:)|答案\s?(?:是|为|:)|答\s?:"
_ABOUT = r"(?:about |approximately |equal to |约)?"
_MARKED_NUMBERS = (
    rf"(?i)\*\*\s?(?:(?:the )?{_CUE})?\s?{_MONEY}({_NUMBER}){_UNIT}\s?\.?\s?\*\*",
    rf"(?i)(?:{_CUE})[\s:*]{{0,8}}{_ABOUT}{_MONEY}({_NUMBER})",
)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]{0,80}\}){0,200})\}")

_LETTER = r"([A-J])(?![A-Za-z0-9_'’])"
_OPENED = r"[\s:*(\[{$\"']{0,8}(?:(?:option|choice) [*(\[\"']{0,4})?"
_CHOICES = (
    rf"(?i:{_CUE})(?i:{_OPENED}){_LETTER}",
    rf"(?i:{_CUE})(?i:{_OPENED})([a-j])(?:[)\].*\"']|\s?\Z)",
    rf"\*\*\s?\(?{_LETTER}(?:[).:]|\s?\*\*)",
    rf"\A\W{{0,8}}{_LETTER}\s?(?:\Z|[).:,*\n])",
    rf"(?m:^\W{{0,8}}{_LETTER}\W{{0,8}}$)",
)
"""Ways of choosing, the clearest first; of several such places the last one counts."""

_VAGUE_CHOICES = (
    rf"(?:(?i:option|choice)|选(?:项|择)?)\s?:?\s?\(?{_LETTER}",
    rf"\({_LETTER}\)",
    r"(?<![A-Za-z0-9_])([B-HJ])(?![A-Za-z0-9_'’])",
)
"""These only where the text names no other letter so."""

_search = LimitedProcess("deepmnn.measure.regex_search", "search")


def default_match(answers: Sequence[str]) -> str:
    """How answers are matched when nobody says: numbers and letters of choices as such."""
    if all(is_number(answer) for answer in answers):
        return "number"
    if all(re.fullmatch(r"[A-J]", answer.strip()) for answer in answers):
        return "choice"
    return "contains"


def matches(match: str, text: str, answers: Sequence[str], *, complete: bool = True) -> bool:
    """Whether a text gives one of several right answers.

    complete: False for a text that was cut off: its last number may be half of one, or none that
    it ends with, so that only a number that is marked as the answer counts.

    Raises LimitError when a regular expression takes too long or too much memory.
    """
    if match == "regex":
        return any(_search.call([pattern, text]) is True for pattern in answers)
    if match == "exact":
        return text.strip() in [answer.strip() for answer in answers]
    if match == "contains":
        return any(contains(text, answer) for answer in answers)
    read = parse_choice if match == "choice" else parse_number
    given = parse_number(text, complete=complete) if match == "number" else parse_choice(text)
    return given is not None and given in [read(answer) for answer in answers]


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a regular expression; None when nothing is. Raises LimitError."""
    fault = _search.call([pattern, ""])
    return fault if isinstance(fault, str) else None


def is_number(answer: str) -> bool:
    """Whether an answer is a number by itself, perhaps of money or of per cent."""
    number = rf"{_MONEY}{_NUMBER}\s?%?"
    return re.fullmatch(number, _plain_digits(answer.strip())) is not None


def parse_number(text: str, *, complete: bool = True) -> str | None:
    r"""The number an answer gives, None without one.

    In \boxed{}, else in bold, else behind "the answer is", else the last one: the last of these
    only if the text is complete.
    """
    plain = _plain_digits(text)
    if not complete:
        plain = re.sub(r"[0-9.,-]+\Z", "", plain)
    boxed = [re.findall(_NUMBER, content) for content in _BOXED.findall(plain)]
    if boxed and boxed[-1]:
        return _canonical(boxed[-1][-1])
    for pattern in (*_MARKED_NUMBERS, *([rf"({_NUMBER})"] if complete else [])):
        found = re.findall(pattern, plain)
        if found:
            return _canonical(found[-1])
    return None


def parse_choice(text: str) -> str | None:
    """The letter A to J that an answer chooses, None without one."""
    boxed = _BOXED.findall(text)
    if boxed:
        text = re.sub(r"\\\w+|[{}]", " ", boxed[-1]).strip()
    text = _close(unicodedata.normalize("NFKC", text))
    for pattern in _CHOICES:
        found = re.findall(pattern, text)
        if found:
            return str(found[-1]).upper()
    for pattern in _VAGUE_CHOICES:
        found = re.findall(pattern, text)
        if found:
            return str(found[0]) if len(set(found)) == 1 else None
    return None


def contains(text: str, answer: str) -> bool:
    """Whether the words of the answer stand in the text, one after the other.

    Where a script puts no spaces between words (Chinese, Japanese, Korean particles, Thai), the
    characters are enough. An answer without letters and digits must be there as it is.
    """
    wanted, said = _folded(answer), _folded(text)
    if not wanted:
        return bool(answer.strip()) and answer.strip() in text
    begin = said.find(wanted)
    while begin >= 0:
        end = begin + len(wanted)
        if _is_border(said, begin) and _is_border(said, end):
            return True
        begin = said.find(wanted, begin + 1)
    return False


def _is_border(text: str, at: int) -> bool:
    """Whether a word may end at this place of a folded text."""
    if at in (0, len(text)):
        return True
    before, after = text[at - 1], text[at]
    return " " in (before, after) or _runs_on(before) or _runs_on(after)


_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3100-\u312f"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


def _runs_on(char: str) -> bool:
    """Whether a character belongs to a script whose words are not divided by spaces."""
    return _WITHOUT_SPACES.match(char) is not None


def _folded(text: str) -> str:
    """In one case, with one space for everything between words; C++ and C# stay themselves."""
    chars: list[str] = []
    for char in unicodedata.normalize("NFKC", text).casefold():
        is_word = char.isalnum() or unicodedata.category(char)[0] == "M"
        if is_word or (char in "+#" and chars and chars[-1] != " "):
            chars.append(char)
        elif chars and chars[-1] != " ":
            chars.append(" ")
    return "".join(chars).strip()


_ASCII = str.maketrans("０１２３４５６７８９．，−－：", "0123456789.,--:")


def _plain_digits(text: str) -> str:
    """Numbers in ASCII, without commas between thousands."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", _close(text.translate(_ASCII)))


def _close(text: str) -> str:
    """With one character for a run of white space, so that no pattern has many to choose from."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text)


def _canonical(number: str) -> str:
    """One way to write a number: no zeros that mean nothing."""
    whole, _, fraction = number.lstrip("-").partition(".")
    digits = (whole.lstrip("0") or "0") + f".{fraction}".rstrip("0").rstrip(".")
    return f"-{digits}" if number.startswith("-") and digits != "0" else digits
