r"""Regular expressions of tokenizer files, checked: their time must grow with the text, no faster.

The `tokenizers` library matches them with Oniguruma, which backtracks: `(a+)+$` takes 2^n steps for
n letters. `check_pattern` reads the syntax that published tokenizers use, and counts in how many
ways a pattern can match from one place before it fails:

- One item that repeats without a bound (`\s*`) and is followed by one that may fail (`[\r\n]`)
  has as many ways as its run is long. It passes if the next alternative takes the whole run
  (`\s+`), for then the next match begins behind it; others of its kind may lie between, since
  each takes the run up to the last place where it matches. Two such items in a row never pass.
- White space may be tried without that (`\s+$`, of DeepSeek V2): texts have little of it in a row.
- Optional items and alternatives in front of one that may fail multiply a constant.
- What repeats in a group (`(?:ab)+`) has one way to match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deepmnn.errors import TokenizerError, shown

_LONGEST = 20_000
"""Characters. DeepSeek Coder's class of letters has 3,000."""
_MOST_WAYS = 256
_MOST_REPEATS = 1000
_LARGEST = 20_000
"""Items, with those of `a{100}` counted 100 times, as Oniguruma compiles them."""
_DEEPEST = 20
_ENDLESS = 1 << 30
_FEW = 8
"""An item that may repeat more often than this counts as one without a bound."""

_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[A-Za-z_ ]{1,40}\}|x\{[0-9A-Fa-f]{1,6}\}|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}"
    r"|[sSdDwWhHnrtfvae]|[^\w\s]|[_ \n])"
)
_ANCHOR = re.compile(r"\\[bBAzZ]|[\^$]")
_GROUP = re.compile(r"\((?:\?(?:(?P<look><?[=!])|>|[im]*(?:-[im]+)?:))?")
_COUNT = re.compile(r"\{(\d{0,6})(,?)(\d{0,6})\}")
_QUANTIFIER = re.compile(r"([*+?])([+?]?)")  # lazy: ?, possessive: +
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")


@dataclass(frozen=True)
class _Node:
    """A part of a pattern.

    text: as it is written. shortest: characters it needs. parts: of a group, its alternatives,
    each a list of nodes. low, high: how often it may repeat; lazy: as rarely as it can.
    """

    text: str
    shortest: int
    parts: list[list[_Node]] = field(default_factory=list)
    look: bool = False
    low: int = 1
    high: int = 1
    lazy: bool = False

    @property
    def size(self) -> int:
        """Items, with those that repeat counted as often as they are compiled."""
        inner = sum(node.size for part in self.parts for node in part) or 1
        return inner * max(self.low, self.high if self.high < _ENDLESS else 0, 1)

    @property
    def least(self) -> int:
        """Characters of the shortest match."""
        return 0 if self.look else self.low * self.shortest

    @property
    def may_fail(self) -> bool:
        """Whether there are texts that it does not match."""
        if self.look or (not self.parts and self.low > 0):
            return True
        return self.low > 0 and all(any(n.may_fail for n in part) for part in self.parts)


@dataclass(frozen=True)
class _Ways:
    """In how many ways a part can match: `count`, times the lengths of the runs of `runs`."""

    count: int
    runs: tuple[str, ...] = ()


def check_pattern(pattern: str) -> int:
    """The fewest characters that it matches. Raises TokenizerError when it may take too long."""
    if len(pattern) > _LONGEST:
        raise _refused(pattern, f"has {len(pattern)} characters", f"at most {_LONGEST}")
    alternatives = _Parser(pattern).parse()
    if sum(node.size for alternative in alternatives for node in alternative) > _LARGEST:
        raise _refused(pattern, "repeats too much", f"at most {_LARGEST} items")
    found = [_sequence_ways(alternative, False, pattern) for alternative in alternatives]
    for index, ways in enumerate(found):
        if ways.count > _MOST_WAYS or len(ways.runs) > 1:
            raise _refused(pattern, "can match in too many ways", "fewer choices")
        if ways.runs and not _is_covered(ways.runs, found[index:], alternatives[index:]):
            run = ways.runs[0]
            raise _refused(
                pattern, f"tries every length of {run}+ from every place", f"then {run}+ alone"
            )
    return min(sum(node.least for node in alternative) for alternative in alternatives)


def _is_covered(runs: tuple[str, ...], ways: list[_Ways], alternatives: list[list[_Node]]) -> bool:
    """Whether the run that an alternative has tried is taken whole by one of those behind it."""
    if runs[0] == r"\s":
        return True
    for other, alternative in zip(ways, alternatives, strict=True):
        if _takes_run(alternative, runs[0]):
            return True
        if other.runs != runs:
            return False
    return False


def _takes_run(alternative: list[_Node], item: str) -> bool:
    """Whether an alternative is `item+`, but for optional characters: nothing in it fails."""
    rest = list(alternative)
    while rest and (rest[0].low, rest[0].high) == (0, 1) and not rest[0].parts:
        rest.pop(0)
    if not rest or rest[0].text != item or rest[0].lazy:
        return False
    if rest[0].low > 1 or rest[0].high < _ENDLESS:
        return False
    return not any(node.may_fail for node in rest[1:])


def _sequence_ways(nodes: list[_Node], fails_after: bool, pattern: str) -> _Ways:
    """The product over the items that have one behind them which may fail."""
    count, runs = 1, tuple[str, ...]()
    for node in reversed(nodes):
        ways = _node_ways(node, fails_after, pattern)
        count, runs = min(count * ways.count, 1 << 40), ways.runs + runs
        fails_after = fails_after or node.may_fail
    return _Ways(count, runs)


def _node_ways(node: _Node, fails_after: bool, pattern: str) -> _Ways:
    inner = _Ways(1)
    if node.parts:
        repeats = node.high > 1
        alone = len(node.parts) == 1 and len(node.parts[0]) == 1 and not fails_after
        if repeats and not alone and not _is_plain(node):
            raise _refused(pattern, f"repeats {node.text:.60}", "no choice in what repeats")
        # Of what is only looked at, nothing is taken: it is read again from the next place.
        parts = [_sequence_ways(p, fails_after or node.look, pattern) for p in node.parts]
        inner = _Ways(sum(p.count for p in parts), max((p.runs for p in parts), key=len))
    if not fails_after or node.high == node.low:
        return inner
    if node.high - node.low > _FEW:
        if node.lazy:
            raise _refused(pattern, f"repeats {node.text:.60} lazily", "greedy repetition")
        return _Ways(inner.count, (*inner.runs, node.text))
    return _Ways(inner.count + node.high - node.low, inner.runs)


def _is_plain(node: _Node) -> bool:
    """Whether a group is characters one after the other, all of them needed."""
    if len(node.parts) != 1:
        return False
    return all(not n.parts and not n.look and n.low == n.high == 1 for n in node.parts[0])


class _Parser:
    """Reads a pattern. Raises TokenizerError for syntax that it does not know."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> list[list[_Node]]:
        """Its alternatives; those of a group, when that is all there is."""
        if self._pattern.startswith("(?i)"):
            self._at = 4
        alternatives = self._alternatives()
        if self._at < len(self._pattern):
            raise self._unknown()
        match alternatives:
            case [[_Node(parts=parts, look=False, low=1, high=1)]] if parts:
                return parts
        return alternatives

    def _alternatives(self) -> list[list[_Node]]:
        found: list[list[_Node]] = [[]]
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                found.append([])
            else:
                found[-1].append(self._repeated(self._item()))
        return found

    def _item(self) -> _Node:
        begin = self._at
        if self._take(_ANCHOR):
            return _Node(self._pattern[begin : self._at], 0)
        if self._take(_ESCAPE):
            return _Node(self._pattern[begin : self._at], 1)
        char = self._pattern[begin]
        if char == "(":
            return self._group()
        if char == "[":
            self._class()
        elif char in "\\*+?":
            raise self._unknown()
        else:
            self._at += 1
        return _Node(self._pattern[begin : self._at], 1)

    def _group(self) -> _Node:
        begin = self._at
        opening = self._take(_GROUP)
        self._depth += 1
        if opening is None or self._depth > _DEEPEST or self._peek() == "?":
            raise self._unknown()
        parts = self._alternatives()
        if self._peek() != ")":
            raise self._unknown()
        self._at += 1
        self._depth -= 1
        shortest = min(sum(node.least for node in part) for part in parts)
        text = self._pattern[begin : self._at]
        return _Node(text, shortest, parts, look=bool(opening["look"]))

    def _class(self) -> None:
        """Skips [...], with classes inside it."""
        depth = 0
        while True:
            if depth and (self._take(_POSIX) or self._take(_ESCAPE)):
                continue
            char = self._peek()
            if char in ("", "\\"):
                raise self._unknown()
            self._at += 1
            if char == "[":
                depth += 1
                if self._peek() == "^":
                    self._at += 1
                if depth > _DEEPEST or self._peek() == "]":
                    raise self._unknown()
            elif char == "]":
                depth -= 1
                if depth == 0:
                    return

    def _repeated(self, item: _Node) -> _Node:
        """The item with the quantifiers behind it; one behind another repeats a group."""
        while (times := self._quantifier()) is not None:
            low, high, lazy = times
            if item.look:
                raise self._unknown()
            if (item.low, item.high) != (1, 1):
                item = _Node(item.text, item.least, [[item]])
            item = _Node(item.text, item.shortest, item.parts, False, low, high, lazy)
        return item

    def _quantifier(self) -> tuple[int, int, bool] | None:
        """(low, high, lazy)."""
        simple = self._take(_QUANTIFIER)
        if simple is not None:
            low, high = {"*": (0, _ENDLESS), "+": (1, _ENDLESS), "?": (0, 1)}[simple[1]]
            return low, high, simple[2] == "?"
        found = _COUNT.match(self._pattern, self._at)
        if found is None or not (found[1] or found[3]):
            return None
        self._at = found.end()
        low = int(found[1] or 0)
        high = int(found[3]) if found[3] else _ENDLESS if found[2] else low
        if low > high or max(low, high if high < _ENDLESS else 0) > _MOST_REPEATS:
            raise self._unknown()
        return low, high, False

    def _take(self, token: re.Pattern[str]) -> re.Match[str] | None:
        found = token.match(self._pattern, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _unknown(self) -> TokenizerError:
        rest = self._pattern[self._at : self._at + 20]
        return _refused(self._pattern, f"has {rest!r}", "syntax that tokenizers use")


def _refused(pattern: str, found: str, expected: str) -> TokenizerError:
    return TokenizerError(f"the tokenizer's pattern {shown(pattern, 120)} {found}", expected)
