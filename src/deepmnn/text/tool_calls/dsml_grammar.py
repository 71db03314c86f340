"""Lark for calls in DSML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepmnn.text.json_schema import json_rule
from deepmnn.text.tool_calls.dsml_tags import DSML, DsmlTags
from deepmnn.text.tool_calls.format import Marker, Tool
from deepmnn.text.tool_calls.functions import functions_of, quoted

_PLAIN = {"type", "properties", "required", "additionalProperties", "description", "title"}
_DEFINITIONS = ("$defs", "definitions")
_PLAIN_TEXT = {"type", "description", "title", "default", "examples", "enum", "const"}


def dsml_grammar(tags: DsmlTags, tools: Sequence[Tool], marker: Marker, *, parallel: bool) -> str:
    """A rule `answer`: one call, or several, in a block.

    Parameters come in the order of the schema. A schema that says more than which properties
    there are is followed by one JSON object in their place.
    """
    return _Grammar(tags, marker).answer(tools, parallel)


class _Grammar:
    def __init__(self, tags: DsmlTags, marker: Marker) -> None:
        self._tags, self._marker = tags, marker
        self._lines: list[str] = []

    def answer(self, tools: Sequence[Tool], parallel: bool) -> str:
        tags, calls = self._tags, []
        for number, function in enumerate(functions_of(tools)):
            head = self._tag(f'<{DSML}{tags.invoke} name="{function.name}">\n')
            body = self._body(f"call_{number}", function.parameters)
            end = self._tag(tags.invoke_end)
            self._lines.append(f"call_{number}: {head} {body} {end}")
            calls.append(f"call_{number}")
        more = ' ("\\n" call)*' if parallel else ""
        begin, end = self._tag(tags.block_begin), self._tag(tags.block_end)
        answer = f'answer: {begin} "\\n" call{more} "\\n" {end}'
        return "\n".join([answer, "call: " + " | ".join(calls), *self._lines])

    def _tag(self, text: str) -> str:
        """A tag, or more of them, as Lark: the marker in it may be a special token."""
        return f" {self._marker(DSML)} ".join(quoted(piece) for piece in text.split(DSML))

    def _body(self, name: str, schema: Mapping[str, Any]) -> str:
        definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        plain = (
            set(schema) <= _PLAIN | set(_DEFINITIONS)
            and isinstance(properties, Mapping)
            and set(required) <= set(properties)
            and not any('"' in key for key in properties)
        )
        if plain and not properties and schema.get("additionalProperties") is False:
            return '"\\n"'
        if not plain or not properties:
            self._lines.append(f"{name}_json: {json_rule(schema)}")
            return f'{name}_json "\\n"'
        pieces = []
        for number, (key, each) in enumerate(properties.items()):
            rule = f"{name}_{number}"
            inner = {**each, **definitions} if isinstance(each, Mapping) else each
            self._lines.append(f"{rule}: {self._parameter(rule, key, inner)}")
            pieces.append(rule if key in required else f"{rule}?")
        blank = () if required else ('"\\n"?',)  # where no parameter is given
        return " ".join([*pieces, *blank])

    def _parameter(self, rule: str, key: str, schema: Any) -> str:
        tags = self._tags
        is_text = (
            isinstance(schema, Mapping)
            and schema.get("type") == "string"
            and set(schema) <= _PLAIN_TEXT | set(_DEFINITIONS)
        )
        kind = "true" if is_text else "false"
        head = self._tag(f'{tags.parameter_begin} name="{key}" string="{kind}">')
        end = self._tag(f"{tags.parameter_end}\n")
        if not is_text:
            self._lines.append(f"{rule}_value: {json_rule(schema)}")
            return f"{head} {rule}_value {end}"
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            return f"{head} ({' | '.join(quoted(str(value)) for value in values)}) {end}"
        return f"{head} {self._any_text(rule)}"

    def _any_text(self, rule: str) -> str:
        """Up to the end tag, and that: "</" alone is text, too."""
        name = self._tags.parameter
        marker = self._marker(DSML)
        if marker.startswith("<["):
            self._lines.append(f"{rule}_text: /(?s:.*)<\\//")
            return f"{rule}_text {marker} " + quoted(f"{name}>\n")
        self._lines.append(f"{rule}_text[lazy]: /(?s:.*)<\\/{DSML}{name}>/")
        return f'{rule}_text "\\n"'
