"""Tool calls in DSML, as DeepSeek V3.2 and V4 write them.

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="get_weather">
    <｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
    <｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

V4 has other names for the tags. Text is written as it is, all else as JSON; the arguments may
also be one JSON object in place of the parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NoReturn

from deepmnn.text.tool_calls.dsml_grammar import dsml_grammar
from deepmnn.text.tool_calls.dsml_tags import DsmlTags
from deepmnn.text.tool_calls.format import Marker, Tool
from deepmnn.text.tool_calls.functions import EXAMPLE_NAME
from deepmnn.text.tool_calls.json_end import JsonEnd
from deepmnn.text.tool_calls.splitter import MarkerSplitter, Step

_LONGEST_TAG = 512
_NAME = re.compile(r'\s+name="([^"]+?)"\s*>')
_PARAMETER = re.compile(r'\s+name="(.*?)"(?:\s+string="(true|false)")?\s*>', re.DOTALL)


class DsmlSplitter(MarkerSplitter):
    """Makes JSON of the parameters as they come."""

    def __init__(self, tags: DsmlTags, special: frozenset[str]) -> None:
        super().__init__(
            (tags.block_begin, tags.invoke_begin),
            (tags.parameter_end, tags.invoke_end, tags.block_end),
            special,
        )
        self._tags = tags

    def _begin(self, marker: str) -> Step:
        return self._in_block if marker == self._tags.block_begin else self._in_invoke

    def _in_block(self) -> bool:
        body, mark = self._held.lstrip(), self._tags.invoke_begin
        if body.startswith(mark):
            self._read(len(self._held) - len(body) + len(mark))
            self._step = self._in_invoke
            return True
        return not self._may_become(mark) and self._no_call()

    def _in_invoke(self) -> bool:
        if found := _NAME.match(self._held):
            self._read(found.end())
            self._named(found[1])
            self._written = ""  # what of the object is open: "", "{" or all of it, "{}"
            self._step = self._in_body
            return True
        return (">" in self._held or len(self._held) > _LONGEST_TAG) and self._no_call()

    def _in_body(self) -> bool:
        """Between parameters."""
        body, tags = self._held.lstrip(), self._tags
        if body.startswith(tags.parameter_begin):
            return self._in_parameter(body[len(tags.parameter_begin) :])
        if not self._written and body.startswith("{"):
            self._held, self._written = body, "{}"
            self._json, self._step = JsonEnd(), self._in_object
            return True
        if self._may_become(tags.parameter_begin, tags.invoke_end) and body != tags.invoke_end:
            return self._wait()
        self._close()
        return self._end_call()

    def _in_parameter(self, body: str) -> bool:
        """Behind the beginning of a parameter's tag."""
        found = _PARAMETER.match(body)
        if found is None:
            if len(body) <= _LONGEST_TAG:
                return self._wait()
            self._close()
            return self._end_call()
        self._argue((", " if self._written else "{") + _quoted(found[1]) + ": ")
        self._written = "{"
        self._held = body[found.end() :]
        self._step = self._in_value
        if found[2] == "true":
            self._argue('"')
            self._step = self._in_string
        return True

    def _in_string(self) -> bool:
        piece, ended = self._until(self._tags.parameter_end)
        self._argue(_quoted(piece)[1:-1])
        if ended:
            self._argue('"')
            self._step = self._in_body
        return ended

    def _in_value(self) -> bool:
        """JSON. What may be long is passed on as it comes, the rest when it is whole."""
        self._held = self._held.lstrip()
        if self._held.startswith(("{", "[")):
            self._step = self._in_long_value
            return True
        if self._tags.parameter_end not in self._held:
            return self._wait()
        value = self._until(self._tags.parameter_end)[0].rstrip()
        self._argue(value if _is_json(value) else _quoted(value))
        self._step = self._in_body
        return True

    def _in_long_value(self) -> bool:
        piece, ended = self._until(self._tags.parameter_end)
        self._argue(piece)
        if ended:
            self._step = self._in_body
        return ended

    def _in_object(self) -> bool:
        """All arguments as one JSON object."""
        size = self._json.take(self._held)
        self._argue(self._held[:size])
        self._held = self._held[size:]
        if self._json.done:
            self._step = self._in_body
            return True
        return not self._json.sound and self._end_call()

    def _close(self) -> None:
        """Ends the object of the arguments."""
        if self._written != "{}":
            self._argue("}" if self._written else "{}")
            self._written = "{}"


class DsmlFormat:
    """See the head of this file."""

    def __init__(self, special: frozenset[str], tags: DsmlTags) -> None:
        self.special, self._tags = special, tags
        parameter = f'{tags.parameter_begin} name="<argument>" string="true|false"><value>'
        call = f'{tags.invoke_begin} name="{EXAMPLE_NAME}">\n{parameter}{tags.parameter_end}\n'
        self.example = f"{tags.block_begin}\n{call}{tags.invoke_end}\n{tags.block_end}"

    def splitter(self) -> DsmlSplitter:
        """For one answer."""
        return DsmlSplitter(self._tags, self.special)

    def grammar(self, tools: Sequence[Tool], marker: Marker, *, parallel: bool) -> str:
        """Lark whose rule `answer` is calls of these tools."""
        return dsml_grammar(self._tags, tools, marker, parallel=parallel)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
