"""Wraps an answer at words while it streams."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from rich.cells import cell_len

_TAB = 8
_CLOSING = frozenset("、。，．：；！？）］｝」』】〉》”’%‰")
"""What must not begin a line, in scripts whose words have no spaces between them."""

_VERBATIM = re.compile(r"(\t| {4,})(?![-*+] |\d+[.)] )\S|\|")
"""How a line begins that is code (and no item of a list) or a row of a table."""

_FENCE = re.compile(r" {0,3}(```|~~~)")
_UNDECIDED = re.compile(r"[ \t]*([-*+]|\d{1,9}[.)]?|`{1,2}|~{1,2})?")
"""A line that may still become one of those."""


class Wrapper:
    """Turns pieces of text into pieces with line ends, so that no word is cut at the right edge.

    A word is held back until its end is there. Lines of code and words that are longer than a line
    are left to the terminal.

    Args:
        width: the columns of the terminal, asked for each word: a window may be resized.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._start = ""
        self._deciding = True
        self._fenced = False
        self._verbatim = False
        self._column = 0
        self._gap = ""
        self._word = ""

    def feed(self, text: str) -> str:
        """What can be printed once `text` has come."""
        return "".join(map(self._take, text))

    def flush(self) -> str:
        """What is held back; the line goes on after it."""
        return self._decide() + self._end_word()

    def _take(self, char: str) -> str:
        if char == "\n":
            ended = self.flush() + self._gap + char
            self._start, self._gap, self._column, self._deciding = "", "", 0, True
            return ended
        if not self._deciding:
            return self._place(char)
        self._start += char
        return "" if _UNDECIDED.fullmatch(self._start) else self._decide()

    def _decide(self) -> str:
        """The line's beginning says what it is."""
        if not self._deciding:
            return ""
        self._deciding = False
        fence = bool(_FENCE.match(self._start))
        self._verbatim = fence or self._fenced or bool(_VERBATIM.match(self._start))
        self._fenced ^= fence
        return "".join(map(self._place, self._start))

    def _place(self, char: str) -> str:
        if self._verbatim:
            return self._advance(char)
        if char in " \t":
            ended = self._end_word()
            self._gap += char
            return ended
        ended = ""
        if self._word and char not in _CLOSING and (_is_wide(char) or _is_wide(self._word[-1])):
            ended = self._end_word()
        self._word += char
        return ended

    def _end_word(self) -> str:
        if not self._word:
            return ""
        gap, word = self._gap, self._word
        self._gap = self._word = ""
        width, cells = self._width(), cell_len(word)
        if self._column + _cells(gap, self._column) + cells > width >= cells and self._column:
            self._column = 0
            return "\n" + self._advance(word)
        return self._advance(gap + word)

    def _advance(self, text: str) -> str:
        """Moves the cursor as the terminal will; a full line goes on in the next."""
        width = max(1, self._width())
        self._column += _cells(text, self._column)
        if self._column > width:
            self._column = self._column % width or width
        return text


def _is_wide(char: str) -> bool:
    """Whether a line may break beside it: ideographs and the like, but no emoji."""
    return unicodedata.east_asian_width(char) in "WF" and unicodedata.category(char) != "So"


def _cells(text: str, column: int) -> int:
    """The columns that text takes when it begins in `column`."""
    if "\t" not in text:
        return cell_len(text)
    end = column
    for part in re.split(r"(\t)", text):
        end = (end // _TAB + 1) * _TAB if part == "\t" else end + cell_len(part)
    return end - column
