"""Guesses what followed the last time: answers that repeat their prompt, or themselves.

Code that is edited, texts that are quoted and summed up repeat long pieces word for word. The last
few tokens are looked up in the sequence itself, and what followed them there is the guess ("prompt
lookup decoding", https://github.com/apoorvumang/prompt-lookup-decoding; Yang et al.,
arXiv:2304.04487). It takes no model: a look-up in a dictionary, and a few comparisons.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping
from collections.abc import Sequence as List

from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.drafter import NOTHING, Guess

_LEAST = (2, 3, 4, 8)
"""Guesses are of one kind by how many of the last tokens are the same as before, at least."""

_LONGEST = 12
"""More tokens that are the same say no more."""

_PLACES = 8
"""Where the last two tokens stood before, so many of the newest places are compared."""

_AT_ONCE = 8192
"""Tokens that are indexed in one step, at most: a long prompt must not hold up others."""


class NgramDrafter:
    """Looks up where the most of the last tokens stood before; of equals, the newest place counts.

    most: tokens guessed at a time.
    """

    kinds: Mapping[str, float] = {"2-gram": 0.3, "3-gram": 0.45, "4-gram": 0.6, "8-gram": 0.8}

    def __init__(self, most: int) -> None:
        self.most = most
        self._indices: dict[Sequence, _Index] = {}

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """See `Drafter`."""
        return [self._guess(sequence, count) for sequence, count in asked]

    def follow(self, sequence: Sequence) -> None:
        """Starts an index of its tokens; they are taken when it is asked for."""
        self._indices[sequence] = _Index()

    def repeats(self, sequence: Sequence) -> bool:
        """See `Lookup`: whether many of the last tokens stood where the last two were last."""
        index, ids = self._indices[sequence], sequence.ids
        return index.reach(ids) and index.repeats(ids)

    def forget(self, sequence: Sequence) -> None:
        """Drops the sequence's index."""
        self._indices.pop(sequence, None)

    def _guess(self, sequence: Sequence, count: int) -> Guess:
        index, ids = self._indices[sequence], sequence.ids
        if not index.reach(ids) or count < 1:
            return NOTHING
        length, place = index.find(ids)
        if not length:
            return NOTHING
        period = len(ids) - place
        tokens = ids[place : place + count]
        while len(tokens) < count:  # it has reached the end, and goes on with itself
            tokens.append(tokens[len(tokens) - period])
        kind = f"{_LEAST[bisect_right(_LEAST, length) - 1]}-gram"
        return Guess(tokens, [kind] * count)


class _Index:
    """Where each pair of tokens of one sequence was followed by another: 4 bytes a token, and an
    entry for each pair that is new.
    """

    __slots__ = ("_before", "_newest", "_source")

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}
        """Pair → the newest place behind it."""
        self._before = array("i")
        """[tokens] by place: the place before that is behind the same pair; 0 where none is."""
        self._source = 0
        """How far back the last guess came from."""

    def reach(self, ids: list[int]) -> bool:
        """Takes the tokens that have come; whether that is all of them."""
        newest, before = self._newest, self._before
        end = min(len(ids), len(before) + _AT_ONCE)
        for place in range(len(before), end):  # the pair before this token is followed by it
            if place < 2:
                before.append(0)
                continue
            pair = ids[place - 2] << 32 | ids[place - 1]
            before.append(newest.get(pair, 0))
            newest[pair] = place
        return end == len(ids)

    def find(self, ids: list[int]) -> tuple[int, int]:
        """(how many of the last tokens stood together before, the place behind them there).

        (0, 0) where not even two did.
        """
        end = len(ids)
        if end < 3:
            return 0, 0
        place = self._newest.get(ids[-2] << 32 | ids[-1], 0)
        best, found = 0, 0
        if self._source and ids[-2:] == ids[end - self._source - 2 : end - self._source]:
            found = end - self._source  # where the last guess came from
            best = self._same(ids, found)
        for _ in range(_PLACES):
            if not place or best == _LONGEST:
                break
            same = self._same(ids, place)
            if same > best:
                best, found = same, place
            place = self._before[place]
        self._source = end - found if best else 0
        return best, found

    def repeats(self, ids: list[int]) -> bool:
        """Whether the last `_LONGEST` tokens stood at the newest place of the last two."""
        end = len(ids)
        place = self._newest.get(ids[-2] << 32 | ids[-1], 0) if end > 2 else 0
        return place > _LONGEST and ids[place - _LONGEST : place] == ids[end - _LONGEST :]

    @staticmethod
    def _same(ids: list[int], place: int) -> int:
        """How many tokens before `place` are the last ones; two are."""
        end = len(ids)
        if place >= _LONGEST and ids[place - _LONGEST : place - 2] == ids[end - _LONGEST : end - 2]:
            return _LONGEST
        most = min(place, _LONGEST)
        same = 2
        while same < most and ids[place - same - 1] == ids[end - same - 1]:
            same += 1
        return same
