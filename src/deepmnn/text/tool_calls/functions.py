"""The functions that a client offers as tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepmnn.errors import RequestError, shown
from deepmnn.text.json_schema import checked_schema
from deepmnn.text.tool_calls.format import Tool

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


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
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}} if name:
            parameters = rest.get("parameters")
            if parameters is None:
                return Function(name, _NO_PARAMETERS)
            if isinstance(parameters, Mapping):
                schema = checked_schema(parameters, f"parameters of {shown(name)}")
                return Function(name, {"type": "object", **schema})
            raise RequestError(
                f"the parameters of the tool {shown(name)} are {shown(parameters)}",
                "a JSON schema, an object",
            )
    raise RequestError(
        f"tool {index} is {shown(tool)}",
        '{"type": "function", "function": {"name": ..., "parameters": a JSON schema}}',
    )


def quoted(text: str) -> str:
    """A string of Lark."""
    return json.dumps(text, ensure_ascii=False)
