"""Chat templates, rendered as Hugging Face's apply_chat_template renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepmnn.errors import RequestError, TokenizerError
from deepmnn.text.limited_process import LimitedProcess, LimitError

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text, ...}"""

_MAX_CHARS = 1 << 20
"""The longest published template has 20 kB."""

_AS_TEXT = "Check the roles and their order, or pass the prompt as plain text."


class ChatTemplate:
    """A template, in jinja2. It is untrusted code: a process of its own, with limits, renders it.

    Raises TokenizerError when the source is too long to be a template.
    """

    def __init__(self, source: str) -> None:
        if len(source) > _MAX_CHARS:
            raise TokenizerError(
                f"the chat template has {len(source):,} characters", f"at most {_MAX_CHARS:,}"
            )
        self.source = source
        self._engine = LimitedProcess("deepmnn.text.template_engine", "render")

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

        Raises RequestError for messages of the wrong form, TokenizerError when the template is
        none, fails, or takes more time or memory than a template may.
        """
        names = {"tools": None, "documents": None, **(special_tokens or {}), **variables}
        names["messages"] = check_messages(messages)
        names["add_generation_prompt"] = add_generation_prompt
        answer = self._answer(names)
        if "invalid" in answer:
            raise TokenizerError(
                f"the chat template does not compile: {answer['invalid']}", "a jinja2 template"
            )
        if "failed" in answer:
            raise TokenizerError(
                f"the chat template fails on this conversation: {answer['failed']}", "", _AS_TEXT
            )
        return answer["text"]

    def _answer(self, names: Mapping[str, Any]) -> dict[str, str]:
        try:
            answer: dict[str, str] = self._engine.call({"source": self.source, "names": names})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"a variable of the chat template holds what JSON cannot say: {error}"
            ) from error
        except LimitError as error:
            raise TokenizerError(
                f"the chat template {error}", "one that renders a prompt", _AS_TEXT
            ) from None
        return answer


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
