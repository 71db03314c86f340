"""Where a JSON object ends, in text that comes in pieces."""

from __future__ import annotations

import re

# JSON has no "<" outside strings: there, the marker behind a truncated object begins.
_OUTSIDE = re.compile(r'["{}\[\]<]')
_INSIDE = re.compile(r'["\\\x00-\x1f]')


class JsonEnd:
    """Follows brackets and strings.

    Attributes:
        done: whether the object has ended.
        sound: false once what was read cannot be JSON; where it ends is unknown then.
    """

    def __init__(self, depth: int = 0) -> None:
        self.done, self.sound = False, True
        self._depth = depth
        self._string = self._escaped = False

    def take(self, text: str) -> int:
        """Reads on; how many characters of text belong to the object."""
        at = 0
        if self._escaped and text:
            at, self._escaped = 1, False
        while found := (_INSIDE if self._string else _OUTSIDE).search(text, at):
            mark, at = found[0], found.end()
            if mark == '"':
                self._string = not self._string
            elif mark == "\\":
                self._escaped = at == len(text)
                at += 1
            elif mark in "{[":
                self._depth += 1
            elif mark in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.done = True
                    return at
            else:
                self.sound = False
                return found.start()
        return len(text)
