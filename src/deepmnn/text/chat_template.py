"""Chat templates, rendered as Hugging Face's apply_chat_template renders them.

A template is untrusted code from a model hub, so it runs in jinja2's sandbox and sees plain data
only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepmnn.errors import RequestError, TokenizerError

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text, ...}"""


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


class ChatTemplate:
    """A compiled template. Raises TokenizerError when the source is not valid jinja2."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self.source = source
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TokenizerError(
                f"the chat template does not compile: {error}", "a jinja2 template"
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        special_tokens: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text.

        Args:
            messages: the conversation, oldest first.
            add_generation_prompt: end where the assistant's answer begins.
            special_tokens: what the template knows as bos_token, eos_token, ...
            variables: more names for the template (tools, enable_thinking, ...).

        Raises RequestError for messages of the wrong form, TokenizerError when the template fails.
        """
        names = {"tools": None, "documents": None, **(special_tokens or {}), **variables}
        names["messages"] = check_messages(messages)
        names["add_generation_prompt"] = add_generation_prompt
        try:
            return self._template.render(names)
        except Exception as error:  # the template is a program: it can fail in any way
            raise TokenizerError(
                f"the chat template fails on this conversation: {error}",
                "",
                "Check the roles and their order, or pass the prompt as plain text.",
            ) from error


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A plain copy of the messages. Raises RequestError when one is not a message."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(f"the conversation is {messages!r:.80}", "a list of messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {index} is {message!r:.80}",
                'a dict such as {"role": "user", "content": "Hello"}',
            )
    try:
        plain: list[dict[str, Any]] = json.loads(json.dumps([dict(m) for m in messages]))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"a message holds what JSON cannot say: {error}") from error
    return plain
