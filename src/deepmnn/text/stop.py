"""Stop strings, found across the borders of text deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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
    """Lets text through until a stop string; holds back what may be the beginning of one.

    Special tokens are no part of the text, but stop strings may name them (`<|im_end|>`): they are
    found in the text as it is shown, and in the text with the special tokens in it.

    Attributes:
        stopped: whether one has come.
        found: which; of several, the one that begins first.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self._shown: list[bool] = []  # of each character of `_held`
        self.stopped = False
        self.found = ""

    def push(self, delta: str, *, hidden: bool = False) -> str:
        """The text that is now known to be part of the answer; hidden: delta is a special token."""
        if not self._stop:
            return "" if hidden else delta
        self._held += delta
        self._shown += [not hidden] * len(delta)
        places: list[Sequence[int]] = [range(len(self._held))]
        if not all(self._shown):
            places.append([place for place in places[0] if self._shown[place]])
        begins = [begin for kept in places for begin in self._begins(kept)]
        self.stopped = bool(begins)
        if begins:
            cut, self.found = min(begins)
        else:
            cut = min(map(self._sure, places))
        text = self._release(cut)
        if self.stopped:
            self._release(len(self._held))
        return text

    def flush(self) -> str:
        """What was held back, when the answer ends otherwise."""
        return self._release(len(self._held))

    def _begins(self, places: Sequence[int]) -> list[tuple[int, str]]:
        """Where stop strings begin in the held text, of which only `places` are looked at."""
        text = self._text(places)
        return [(places[at], stop) for stop in self._stop if (at := text.find(stop)) >= 0]

    def _sure(self, places: Sequence[int]) -> int:
        """Where what may be the beginning of a stop string begins, likewise."""
        sure = len(places) - partial_match(self._text(places), self._stop)
        return places[sure] if sure < len(places) else len(self._held)

    def _text(self, places: Sequence[int]) -> str:
        return "".join(self._held[place] for place in places)

    def _release(self, cut: int) -> str:
        """Takes the held text up to there; what of it is shown."""
        text = "".join(c for c, shown in zip(self._held[:cut], self._shown, strict=False) if shown)
        self._held, self._shown = self._held[cut:], self._shown[cut:]
        return text
