"""Tool calls as DeepSeek V3, R1 and V3.1 write them, and R1's distillations.

V3 and R1 (between two calls there is a line break):

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    ```json
    {"city": "Paris"}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1, and V3.2-Exp:

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}
    <｜tool▁call▁end｜><｜tool▁calls▁end｜>

(in one line). An answer is read in either form, whichever its model was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepmnn.text.json_schema import json_rule
from deepmnn.text.tool_calls.format import Marker, Tool
from deepmnn.text.tool_calls.functions import (
    EXAMPLE_ARGUMENTS,
    EXAMPLE_NAME,
    functions_of,
    quoted,
)
from deepmnn.text.tool_calls.json_end import JsonEnd
from deepmnn.text.tool_calls.splitter import MarkerSplitter, Step

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKERS = (CALLS_BEGIN, BEGIN, SEPARATOR, END, CALLS_END)
FENCE = "```json"

_FENCE_END = "```"
_LONGEST_NAME = 256
_NAME_END = re.compile(rf"[\n`{{]|{re.escape(END)}")
_OPENING = re.compile(r"\s*(?:```[a-z]*\s+)?(?=[^\s`])")
_FENCED = re.compile(r"\s*(?:```[a-z]*\s)?(.*?)\s*`{0,3}\s*", re.DOTALL)


class DeepSeekSplitter(MarkerSplitter):
    """A call is a kind or a name, a separator, and the rest."""

    def __init__(self, special: frozenset[str]) -> None:
        super().__init__((CALLS_BEGIN, BEGIN), (END, CALLS_END), special)

    def _begin(self, marker: str) -> Step:
        return self._in_block if marker == CALLS_BEGIN else self._in_head

    def _in_block(self) -> bool:
        body = self._held.lstrip()
        if body.startswith(BEGIN):
            self._read(len(self._held) - len(body) + len(BEGIN))
            self._step = self._in_head
            return True
        return not self._may_become(BEGIN) and self._no_call()

    def _in_head(self) -> bool:
        kind, separator, rest = self._held.partition(SEPARATOR)
        if not separator:
            return len(kind) > _LONGEST_NAME and self._no_call()
        body = rest.lstrip()
        end = _NAME_END.search(body)
        if end is None:
            return len(rest) > _LONGEST_NAME and self._no_call()
        # V3 has the kind of tool in front of the separator, V3.1 the name.
        name, size = (body[: end.start()].strip(), end.start()) if end.start() else (kind, 0)
        if not name.strip() or "\n" in name.strip():
            return self._no_call()
        self._read(len(self._held) - len(body) + size)
        self._named(name.strip())
        self._step = self._in_opening
        return True

    def _in_opening(self) -> bool:
        """A fence, where there is one."""
        found = _OPENING.match(self._held)
        if found is None or END.startswith(self._held[found.end() :][: len(END)]):
            if END not in self._held:
                return self._wait()
            self._step = self._in_broken
            return True
        self._held = self._held[found.end() :]
        self._json = JsonEnd()
        self._step = self._in_json if self._held.startswith("{") else self._in_broken
        return True

    def _in_json(self) -> bool:
        size = self._json.take(self._held)
        self._argue(self._held[:size])
        self._held = self._held[size:]
        if self._json.done:
            self._step = self._in_fence
            return True
        if not self._json.sound:
            self._step = self._in_broken
            return True
        return False

    def _in_fence(self) -> bool:
        """The end of the fence, where there is one."""
        body = self._held.lstrip()
        if body.startswith(_FENCE_END):
            self._held = body.removeprefix(_FENCE_END)
        elif self._may_become(_FENCE_END):
            return self._wait()
        return self._end_call()

    def _in_broken(self) -> bool:
        """What is no JSON goes as far as the marker."""
        if END not in self._held and not self._over:
            return False
        body, ended = self._until(END)
        if found := _FENCED.fullmatch(body):
            self._argue(found[1])
        if ended and not self._argued:
            self._argue("{}")
        return self._end_call()


class DeepSeekFormat:
    """See the head of this file; fenced: V3's form."""

    def __init__(self, special: frozenset[str], *, fenced: bool) -> None:
        self.special, self._fenced = special, fenced
        name, call = EXAMPLE_NAME, EXAMPLE_ARGUMENTS
        if fenced:
            call = f"function{SEPARATOR}{name}\n{FENCE}\n{call}\n{_FENCE_END}"
        else:
            call = f"{name}{SEPARATOR}{call}"
        self.example = f"{CALLS_BEGIN}{BEGIN}{call}{END}{CALLS_END}"

    def splitter(self) -> DeepSeekSplitter:
        """For one answer."""
        return DeepSeekSplitter(self.special)

    def grammar(self, tools: Sequence[Tool], marker: Marker, *, parallel: bool) -> str:
        """Lark whose rule `answer` is calls of these tools."""
        functions = functions_of(tools)
        begin, separator, end = marker(BEGIN), marker(SEPARATOR), marker(END)
        lines = []
        for number, function in enumerate(functions):
            name = function.name
            if self._fenced:
                head = f'"function" {separator} ' + quoted(f"{name}\n{FENCE}\n")
                tail = quoted("\n```")
            else:
                head, tail = f"{quoted(name)} {separator}", ""
            lines.append(f"call_{number}: {begin} {head} arguments_{number} {tail} {end}")
            lines.append(f"arguments_{number}: {json_rule(function.parameters)}")
        any_call = " | ".join(f"call_{number}" for number in range(len(functions)))
        more = ("(" + ('"\\n" ' if self._fenced else "") + "call)*") if parallel else ""
        answer = f"answer: {marker(CALLS_BEGIN)} call {more} {marker(CALLS_END)}"
        return "\n".join([answer, f"call: {any_call}", *lines])
