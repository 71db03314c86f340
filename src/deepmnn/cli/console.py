"""What every verb prints with. Whatever it prints is shown, and commands nothing.

Names, texts and messages come from files of strangers. Here their control characters become
symbols, and `[brackets]` are no markup: styles are arguments (`style="dim"`, `Text`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.table import Table

from deepmnn.cli.wrap import Wrapper
from deepmnn.source.sizes import file_size

_SHOWN: dict[int, str] = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"}
_SHOWN |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_SHOWN |= {
    code: f"\\u{code:04x}"
    for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))  # line ends, text turned around
}
_KEPT = {ord(kept): kept for kept in "\n\t"}


def visible(text: str, *, one_line: bool = False) -> str:
    """The text with symbols in place of what would command a terminal: ESC is shown as ␛.

    one_line: line ends and tabs become symbols too, so that a name cannot pass for another line.
    """
    return text.translate(_SHOWN if one_line else _SHOWN | _KEPT)


class Terminal(Console):
    """A console whose output is `visible`, with no markup in strings."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Every string that is printed, in a table or by itself, goes through here."""
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own: a progress bar that moves the cursor
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def say(self, text: str, style: str = "") -> None:
        """Prints one line, as long as it is; a terminal shows it wrapped at words."""
        line = visible(text, one_line=True)
        self.print(self.wrapped(line), style=style, soft_wrap=True)

    def wrapped(self, text: str) -> str:
        """The text as it is shown: on a terminal, no word is cut at the right edge."""
        if not self.is_terminal:
            return text
        wrapper = Wrapper(lambda: self.width)
        return wrapper.feed(text) + wrapper.flush()

    def write(self, text: str) -> None:
        """The text as it is: an answer that is piped to another program, or JSON."""
        try:
            self.file.write(text)
            self.file.flush()
        except BrokenPipeError:  # `| head -1` has seen enough
            self.on_broken_pipe()


__all__ = ["Terminal", "count", "err", "file_size", "out", "print_json", "table", "visible"]

out = Terminal()
"""Results."""

err = Terminal(stderr=True)
"""Progress and errors, so that results can be piped."""


def print_json(value: Any, indent: int | None = None) -> None:
    """JSON on stdout, in ASCII without control characters; without an indent on one line."""
    out.write(json.dumps(value, indent=indent).replace("\x7f", "\\u007f") + "\n")


def count(number: float) -> str:
    """A parameter count for people: "3.2 M"."""
    for unit in ("", " k", " M", " B"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(title=title or None, title_justify="left", title_style="bold", header_style="dim")
    for index, column in enumerate(columns):
        justify: JustifyMethod = "right" if index else "left"
        made.add_column(column, justify=justify, no_wrap=index > 0)
    return made
