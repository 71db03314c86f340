"""A tool call: whole, and in the pieces in which it streams."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model asks for a tool to be run.

    Attributes:
        name: of the tool.
        arguments: JSON text, an object, as the model wrote it. When the answer was cut, or the
            model erred, it may be no sound JSON: check it before use.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call.

    Attributes:
        index: which call of the answer, from 0.
        name: of the tool, in a call's first piece; "" in the others.
        arguments: the next characters of the arguments.
    """

    index: int
    name: str
    arguments: str


def joined(deltas: Iterable[ToolCallDelta]) -> list[ToolCallDelta]:
    """The same calls in fewer pieces: neighbours of one call become one."""
    found: list[ToolCallDelta] = []
    for delta in deltas:
        if found and found[-1].index == delta.index:
            last = found.pop()
            delta = ToolCallDelta(delta.index, last.name, last.arguments + delta.arguments)
        found.append(delta)
    return found


def add_deltas(calls: list[ToolCall], deltas: Iterable[ToolCallDelta]) -> None:
    """Appends pieces to the calls so far."""
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.name, delta.arguments))
        else:
            last = calls[delta.index]
            calls[delta.index] = ToolCall(last.name, last.arguments + delta.arguments)
