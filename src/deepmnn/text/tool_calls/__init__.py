"""Tool calls, as models write them: one file for each format, and which of them a model uses."""

from __future__ import annotations

import re
from collections.abc import Iterable

from deepmnn.text.tokenizer import Tokenizer
from deepmnn.text.tool_calls.call import ToolCall, ToolCallDelta
from deepmnn.text.tool_calls.deepseek import CALLS_BEGIN, FENCE, MARKERS, DeepSeekFormat
from deepmnn.text.tool_calls.dsml import DsmlFormat
from deepmnn.text.tool_calls.dsml_tags import ALL_TAGS, DSML, V4
from deepmnn.text.tool_calls.format import Marker, Tool, ToolCallSplitter, ToolFormat
from deepmnn.text.tool_calls.hermes import BEGIN, END, HermesFormat

__all__ = [
    "Marker",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallSplitter",
    "ToolFormat",
    "generic_format",
    "tool_format",
]

_OTHER = re.compile("<function=|<arg_key>")
"""Formats that have Hermes' markers, but no JSON between them."""


def tool_format(tokenizer: Tokenizer) -> ToolFormat | None:
    """How a model writes tool calls, by the markers in its chat template.

    None when it has no format that is read here. A model without a template is known by its
    vocabulary.
    """
    template = tokenizer.chat_template
    if DSML in template or (not template and tokenizer.token_id(DSML) is not None):
        tags = next((tags for tags in ALL_TAGS if f"{tags.block}>" in template), V4)
        return DsmlFormat(_special(tokenizer, (DSML,)), tags)
    if CALLS_BEGIN in template:
        return DeepSeekFormat(_special(tokenizer, MARKERS), fenced=FENCE in template)
    if BEGIN in template and not _OTHER.search(template):
        return generic_format(tokenizer)
    return None


def generic_format(tokenizer: Tokenizer) -> ToolFormat:
    """What a model is told to write that has no format of its own (tool_prompt.py)."""
    return HermesFormat(_special(tokenizer, (BEGIN, END)))


def _special(tokenizer: Tokenizer, marks: Iterable[str]) -> frozenset[str]:
    """Those that are special tokens."""
    ids = {mark: tokenizer.token_id(mark) for mark in marks}
    return frozenset(
        m for m, token in ids.items() if token is not None and tokenizer.special_text(token)
    )
