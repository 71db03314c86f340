"""Lark for calls in DSML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepmnn.text.json_schema import json_rule
from deepmnn.text.tool_calls.dsml_tags import DSML, DsmlTags
from deepmnn.text.tool_calls.format import Marker, Tool
from deepmnn.text.tool_calls.functions import functions_of, quoted

_NOTES = {"$schema", "title", "description", "default", "examples"}
_DEFINITIONS = {"$defs", "definitions"}
_PLAIN = {"type", "properties", "required", "additionalProperties"} | _NOTES | _DEFINITIONS
_TEXT = {"type", "enum", "const"} | _NOTES
_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef)": "(?!#/(?:\$defs|definitions)/)')
"""Elsewhere than to the definitions: a property's schema by itself has no such place."""


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
        properties = schema.get("properties", {})
        if not properties and schema.get("additionalProperties") is False and _is_plain(schema):
            return '"\\n"'
        if not properties or not _is_plain(schema):
            self._lines.append(f"{name}_json: {json_rule(schema)}")
            return f'{name}_json "\\n"'
        definitions = {key: schema[key] for key in _DEFINITIONS & set(schema)}
        required, pieces = schema.get("required", ()), []
        for number, (key, each) in enumerate(properties.items()):
            rule = f"{name}_{number}"
            self._lines.append(f"{rule}: {self._parameter(rule, key, each, definitions)}")
            pieces.append(rule if key in required else f"{rule}?")
        blank = () if required else ('"\\n"?',)  # where no parameter is given
        return " ".join([*pieces, *blank])

    def _parameter(
        self, rule: str, key: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]
    ) -> str:
        tags, is_text = self._tags, _is_text(schema)
        kind = "true" if is_text else "false"
        head = self._tag(f'{tags.parameter_begin} name="{key}" string="{kind}">')
        end = self._tag(f"{tags.parameter_end}\n")
        if not is_text:
            self._lines.append(f"{rule}_value: {json_rule({**schema, **definitions})}")
            return f"{head} {rule}_value {end}"
        if not {"enum", "const"} & set(schema):
            return f"{head} {self._any_text(rule)}"
        return f"{head} ({' | '.join(map(quoted, _values(schema)))}) {end}"

    def _any_text(self, rule: str) -> str:
        """Up to the end tag, and that: "</" alone is text, too."""
        name = self._tags.parameter
        marker = self._marker(DSML)
        if marker.startswith("<["):
            self._lines.append(f"{rule}_text: /(?s:.*)<\\//")
            return f"{rule}_text {marker} " + quoted(f"{name}>\n")
        self._lines.append(f"{rule}_text[lazy]: /(?s:.*)<\\/{DSML}{name}>/")
        return f'{rule}_text "\\n"'


def _is_plain(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says which parameters there are, and nothing that goes beyond one."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    return (
        set(schema) <= _PLAIN
        and isinstance(properties, dict)
        and isinstance(required, list)
        and all(isinstance(each, dict) for each in properties.values())
        and all(isinstance(key, str) and key in properties for key in required)
        and not any('"' in key or DSML in key for key in properties)
        and not _REFERENCE.search(json.dumps(schema))
    )


def _is_text(schema: Mapping[str, Any]) -> bool:
    """Whether a parameter is text of any kind, or one of some texts. Other text comes as JSON."""
    listed = bool({"enum", "const"} & set(schema))
    values = _values(schema)
    return (
        schema.get("type") == "string"
        and set(schema) <= _TEXT
        and listed == bool(values)
        and all(isinstance(value, str) and DSML not in value for value in values)
    )


def _values(schema: Mapping[str, Any]) -> list[Any]:
    """What a parameter may be, where that is listed."""
    found = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return found if isinstance(found, list) else [found]
