"""Renders chat templates with jinja2, as Hugging Face's apply_chat_template sets it up.

A template is untrusted code from a model hub: it sees plain data only, in jinja2's sandbox, and
`ChatTemplate` runs it in a process of its own (`limited_process.py`).
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MESSAGE_CHARS = 500


def render(request: dict[str, Any]) -> dict[str, str]:
    """Renders request["source"] with request["names"].

    Returns {"text": the prompt}, {"invalid": why} for a source that is no template, or {"failed":
    why} for one that fails on these names.
    """
    try:
        template = _compiled(request["source"])
    except MemoryError:
        raise
    except Exception as error:  # a parser and a compiler on a stranger's text
        return {"invalid": _said(error)}
    try:
        return {"text": template.render(request["names"])}
    except MemoryError:
        raise
    except Exception as error:  # the template is a program: it can fail in any way
        return {"failed": _said(error)}


def _said(error: Exception) -> str:
    """What an error says, in characters that control no terminal."""
    text = str(error)[:_MESSAGE_CHARS] or type(error).__name__
    return "".join(char if char.isprintable() else " " for char in text)


@functools.lru_cache(maxsize=1)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks training targets; here it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter would escape for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
