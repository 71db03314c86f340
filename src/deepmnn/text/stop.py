"""Stop strings, found across the borders of text deltas."""

from __future__ import annotations

from collections.abc import Iterable


def partial_match(text: str, patterns: Iterable[str]) -> int:
    """Length of the longest end of text that begins one of the patterns (but is not all of it)."""
    longest = 0
    for pattern in patterns:
        for size in range(min(len(pattern) - 1, len(text)), longest, -1):
            if text.endswith(pattern[:size]):
                longest = size
                break
    return longest


class StopMatcher:
    """Lets text through until a stop string; holds back what may be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, delta: str) -> str:
        """The text that is now known to be part of the answer."""
        if not self._stop:
            return delta
        text = self._held + delta
        found = [(at, pattern) for pattern in self._stop if (at := text.find(pattern)) >= 0]
        if found:
            self.stopped = True
            cut = min(found)[0]
            self._held = ""
        else:
            cut = len(text) - partial_match(text, self._stop)
            self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, when the answer ends otherwise."""
        text, self._held = self._held, ""
        return text
