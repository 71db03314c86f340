"""The functions that a client offers as tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepmnn.errors import RequestError, shown
from deepmnn.text.json_schema import checked_schema
from deepmnn.text.tool_calls.format import Tool

EXAMPLE_NAME, EXAMPLE_ARGUMENTS = "<function name>", '{"<argument>": <value>}'
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_NAME = re.compile(r'[^\s"<>`{}]{1,128}')
"""OpenAI's API allows fewer characters; these are all that can be read in every format."""


@dataclass(frozen=True)
class Function:
    """A tool's name and the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


def functions_of(tools: Sequence[Tool]) -> list[Function]:
    """Those of the tools. Raises RequestError when one has the wrong form, or there is none."""
    if not tools:
        raise RequestError("there are no tools", "at least one that may be called")
    return [_function(index, tool) for index, tool in enumerate(tools)]


def _function(index: int, tool: Tool) -> Function:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(
            f"tool {index} is {shown(tool)}",
            '{"type": "function", "function": {"name": ..., "parameters": a JSON schema}}',
        )
    name, parameters = function["name"], function.get("parameters")
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"a tool's name is {shown(name)}", "at most 128 letters, digits, dashes or underscores"
        )
    if parameters is None:
        return Function(name, _NO_PARAMETERS)
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise RequestError(
            f"the parameters of the tool {name} are {shown(parameters)}",
            "the JSON schema of an object",
        )
    schema = checked_schema(parameters, f"the schema of {name}")
    return Function(name, {"type": "object", **schema})


def quoted(text: str) -> str:
    """A string of Lark."""
    return json.dumps(text, ensure_ascii=False)
