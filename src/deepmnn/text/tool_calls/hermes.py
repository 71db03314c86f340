"""Tool calls as Hermes and Qwen models write them.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

from __future__ import annotations

import json
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

BEGIN, END = "<tool_call>", "</tool_call>"

_OBJECT = re.compile(r"\s*(?:\{|\Z)")
_NAMED = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


class HermesSplitter(MarkerSplitter):
    """Calls are JSON objects with a name and arguments.

    The arguments stream when the name stands in front of them; otherwise a call comes whole.
    """

    def __init__(self, special: frozenset[str]) -> None:
        super().__init__((BEGIN,), (END,), special)

    def _begin(self, marker: str) -> Step:
        self._whole, self._looked = JsonEnd(), 0
        return self._in_head

    def _in_head(self) -> bool:
        if found := _NAMED.match(self._held):
            name = _json(found[1])
            if isinstance(name, str) and name:
                self._read(found.end())
                self._named(name)
                self._arguments, self._step = JsonEnd(), self._in_arguments
                return True
        if not _OBJECT.match(self._held):
            return self._no_call()
        self._looked += self._whole.take(self._held[self._looked :])
        if not self._whole.done:
            return not self._whole.sound and self._no_call()
        return self._in_whole()

    def _in_whole(self) -> bool:
        """An object whose members stand in another order, or that has more of them."""
        match _json(self._held[: self._looked]):
            case {"name": str(name), **rest} if name:
                self._read(self._looked)
                self._named(name)
                self._argue(_arguments(rest.get("arguments", rest.get("parameters"))))
                return self._end_call()
        return self._no_call()

    def _in_arguments(self) -> bool:
        size = self._arguments.take(self._held)
        self._argue(self._held[:size])
        self._held = self._held[size:]
        if self._arguments.done:
            self._rest, self._step = JsonEnd(depth=1), self._in_rest
            return True
        if not self._arguments.sound:
            self._step = self._in_broken
            return True
        return False

    def _in_broken(self) -> bool:
        """What is no JSON goes as far as the marker."""
        if END not in self._held and not self._over:
            return False
        body, ended = self._until(END)
        body = body.rstrip()
        self._argue(body.removesuffix("}") if ended else body)
        return self._end_call()

    def _in_rest(self) -> bool:
        """The end of the object around the arguments."""
        size = self._rest.take(self._held)
        self._held = self._held[size:]
        if self._rest.done or not self._rest.sound:
            return self._end_call()
        return False


class HermesFormat:
    """See the head of this file."""

    example = f'{BEGIN}\n{{"name": "{EXAMPLE_NAME}", "arguments": {EXAMPLE_ARGUMENTS}}}\n{END}'

    def __init__(self, special: frozenset[str]) -> None:
        self.special = special

    def splitter(self) -> HermesSplitter:
        """For one answer."""
        return HermesSplitter(self.special)

    def grammar(self, tools: Sequence[Tool], marker: Marker, *, parallel: bool) -> str:
        """Lark whose rule `answer` is calls of these tools."""
        lines = []
        functions = functions_of(tools)
        for number, function in enumerate(functions):
            head = quoted(f'\n{{"name": {json.dumps(function.name)}, "arguments": ')
            tail = quoted("}\n")
            lines.append(
                f"call_{number}: {marker(BEGIN)} {head} arguments_{number} {tail} {marker(END)}"
            )
            lines.append(f"arguments_{number}: {json_rule(function.parameters)}")
        any_call = " | ".join(f"call_{number}" for number in range(len(functions)))
        more = ' ("\\n" call)*' if parallel else ""
        return "\n".join([f"answer: call{more}", f"call: {any_call}", *lines])


def _arguments(value: object) -> str:
    """As JSON text; some models write it into a string."""
    if value is None:
        return "{}"
    if isinstance(value, str) and isinstance(_json(value), dict):
        return value
    return json.dumps(value, ensure_ascii=False)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
