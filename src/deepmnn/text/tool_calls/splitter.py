"""The part of splitting an answer that all formats share: text, and where calls begin in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from deepmnn.text.stop import partial_match
from deepmnn.text.tool_calls.call import ToolCallDelta

Step = Callable[[], bool]
"""Reads on in the held text; whether it got any further. The next step may be another one."""


class MarkerSplitter:
    """Text, and calls behind markers; a format adds the steps that read a call.

    White space in front of a call is dropped, and so is what stands between calls or ends the
    answer behind one. Text that turns out to be no call, in spite of its marker, is text; only
    the beginning of another call behind a call, with which a cut answer ends, is dropped.

    Args:
        begins: markers that begin calls. All markers begin with "<" and have no other "<".
        ends: markers that end them, left out of the text behind a call.
        special: special tokens among the markers, or within them: no part of any text.
    """

    def __init__(
        self, begins: Iterable[str], ends: Iterable[str], special: frozenset[str] = frozenset()
    ) -> None:
        self._begins, self._special = tuple(begins), special
        self._all = (*self._begins, *ends)
        self._marks = self._begins  # those that count by now
        self._pattern = _any_of(self._marks)
        self._held = ""
        self._head = ""  # what was read of a call that has no name yet
        self._behind_call = self._argued = self._over = False
        self._text: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self._calls = 0
        self._step: Step = self._in_text

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Adds text of the answer; the text and the pieces of calls that are certain by now."""
        self._held += text
        while self._step():
            pass
        return self._taken()

    def flush(self) -> tuple[str, list[ToolCallDelta]]:
        """What was held back, when the answer ends."""
        self._over = True
        while self._step():
            pass
        if self._head:
            self._no_call()
            self._step()
        self._held = ""
        return self._taken()

    def _begin(self, marker: str) -> Step:
        """The step behind a marker that begins calls."""
        raise NotImplementedError

    def _in_text(self) -> bool:
        held = self._held
        if "<" in held and (found := self._pattern.search(held)):
            body = held[: found.start()].rstrip()
            self._say(body)
            self._held = held[found.end() :]
            if found[0] in self._begins:
                self._head = held[len(body) : found.end()]
                self._step = self._begin(found[0])
            else:
                self._behind_call = True
            return True
        if self._over:
            cut = self._behind_call and any(m.startswith(held.strip()) for m in self._marks)
            self._say("" if cut else held)
            self._held = ""
            return False
        sure = len(held) - self._partial(held) if "<" in held else len(held)
        body = held[:sure].rstrip()
        self._say(body)
        self._held = held[len(body) :]
        return False

    def _partial(self, held: str) -> int:
        """Length of what may be the beginning of a marker at the end."""
        last = held.rfind("<")
        return partial_match(held[last:], self._marks)

    def _may_become(self, *marks: str) -> bool:
        """Whether the held text, white space aside, is the beginning of one of these."""
        body = self._held.lstrip()
        return any(mark.startswith(body) for mark in marks)

    def _wait(self) -> bool:
        """For more of a marker within a call. One that is cut off with the answer is dropped."""
        if self._over:
            self._held = ""
        return False

    def _until(self, mark: str) -> tuple[str, bool]:
        """Takes what surely stands before a marker, and the marker; whether that has come."""
        piece, found, rest = self._held.partition(mark)
        if not found:
            sure = len(piece) - partial_match(piece, (mark,))
            piece, rest = piece[:sure], piece[sure:]
        self._held = rest
        return piece, bool(found)

    def _read(self, size: int) -> None:
        """Goes on in a call's head."""
        self._head += self._held[:size]
        self._held = self._held[size:]

    def _no_call(self) -> bool:
        """What was taken for a call's head is text."""
        if self._over and self._behind_call:
            self._held = ""  # another call, cut off with the answer
        else:
            self._say(self._head)
        self._head = ""
        self._step = self._in_text
        return True

    def _named(self, name: str) -> None:
        """A call's head is complete."""
        self._head = ""
        self._deltas.append(ToolCallDelta(self._calls, name, ""))
        self._calls += 1
        self._behind_call = self._argued = False
        if self._marks is not self._all:
            self._marks, self._pattern = self._all, _any_of(self._all)

    def _argue(self, piece: str) -> None:
        """More of the arguments of the last call."""
        if piece:
            self._argued = True
            self._deltas.append(ToolCallDelta(self._calls - 1, "", piece))

    def _end_call(self) -> bool:
        """What follows is text, or another call."""
        self._behind_call = True
        self._step = self._in_text
        return True

    def _say(self, text: str) -> None:
        for token in self._special:
            text = text.replace(token, "")
        if text:
            self._text.append(text)
            self._behind_call = False

    def _taken(self) -> tuple[str, list[ToolCallDelta]]:
        taken = "".join(self._text), self._deltas
        self._text, self._deltas = [], []
        return taken


def _any_of(marks: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, marks)))
