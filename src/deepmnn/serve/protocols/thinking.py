"""Whether a model is to reason before it answers, in the words of several APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from deepmnn.serve.body import Body

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]
"""How long to reason: "none" is not at all. The rest is for chat templates that know the word."""


class ThinkingSwitch(Body):
    """DeepSeek's and Anthropic's switch.

    type: "adaptive" leaves it to the chat template. display: "omitted" leaves the text of the
    thinking out of the answer (Anthropic's API).
    """

    type: Literal["enabled", "disabled", "adaptive", "auto", "between_tools"]
    display: Literal["summarized", "omitted"] | None = None


class Thinking(Body):
    """The fields that say how to reason.

    thinking: DeepSeek's switch. reasoning_effort: OpenAI's. chat_template_kwargs: vLLM's, for the
    chat template; `thinking` and `enable_thinking` there are the switch. The last of them that is
    given counts. include_reasoning: false leaves the reasoning out of the answer.
    """

    thinking: ThinkingSwitch | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=64)
    include_reasoning: bool | None = None

    def asked(self) -> dict[str, Any]:
        """`thinking` and `variables` of a Chat."""
        return chat_thinking(self.thinking, self.reasoning_effort, self.chat_template_kwargs)


def chat_thinking(
    switch: ThinkingSwitch | None, effort: Effort | None, kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`thinking` and `variables` of a Chat."""
    thinking: bool | None = None
    variables = dict(kwargs or {})
    if effort is not None:
        thinking = effort != "none"
        variables.setdefault("reasoning_effort", effort)
    if switch is not None:
        thinking = {"enabled": True, "disabled": False}.get(switch.type)
    for name in ("thinking", "enable_thinking"):
        if isinstance(variables.get(name), bool):
            thinking = variables.pop(name)
    return {"thinking": thinking, "variables": variables}
