"""An answer as blocks of reasoning, of text, and of calls, which its chunks open and extend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deepmnn.engine.completion import Chunk

Kind = Literal["reasoning", "text", "call"]


@dataclass(eq=False)
class Block:
    """A part of an answer.

    Attributes:
        kind: what it is.
        index: which of the answer's blocks.
        text: so far; of a call, its arguments as JSON text.
        name: of the tool that is called.
    """

    kind: Kind
    index: int
    text: str = ""
    name: str = ""


class Blocks:
    """The blocks of one answer.

    Attributes:
        made: all so far. The last one goes on until another begins.
        called: whether a tool is called.
        last: the newest chunk.
    """

    def __init__(self) -> None:
        self.made: list[Block] = []
        self.called = False
        self._calls = 0

    def add(self, chunk: Chunk) -> Iterator[tuple[Block, str]]:
        """Takes a chunk. Gives each block that it extends, with the new text.

        A block that begins is given once more, before, with the text "".
        """
        if chunk.reasoning:
            yield from self._extend("reasoning", chunk.reasoning)
        if chunk.text:
            yield from self._extend("text", chunk.text)
        for delta in chunk.tool_calls:
            begins = delta.index >= self._calls
            if begins:
                self._calls, self.called = delta.index + 1, True
            yield from self._extend("call", delta.arguments, delta.name, begins=begins)

    def _extend(
        self, kind: Kind, text: str, name: str = "", begins: bool = False
    ) -> Iterator[tuple[Block, str]]:
        if begins or not self.made or self.made[-1].kind != kind:
            self.made.append(Block(kind, len(self.made), name=name))
            yield self.made[-1], ""
        if text:
            self.made[-1].text += text
            yield self.made[-1], text
