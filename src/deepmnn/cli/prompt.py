"""Where a chat's questions come from: the line editor on a terminal, else the lines of stdin."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from deepmnn.cli.commands import is_open
from deepmnn.errors import RequestError

MAX_CHARACTERS = 16 << 20
"""No line is longer."""


class Prompt(Protocol):
    """Reads what is asked."""

    def read(self) -> str | None:
        """The next question or command; None at the end. May raise KeyboardInterrupt."""


class Lines:
    """Standard input that is no terminal: each line is a question, quoted ones belong together."""

    def read(self) -> str | None:
        """The next one; None at the end. Raises RequestError when a line is far too long."""
        text = line = self._line()
        while line and is_open(text):
            line = self._line()
            text += line
        return text.removesuffix("\n") if text else None

    def _line(self) -> str:
        line = "" if sys.stdin is None else sys.stdin.readline(MAX_CHARACTERS)
        if len(line) == MAX_CHARACTERS:
            raise RequestError("a line of stdin has no end", f"at most {MAX_CHARACTERS} characters")
        return line


def is_interactive() -> bool:
    """Whether somebody types, and sees it: the editor draws on stderr when stdout is piped."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    typed, shown, noted = (stream is not None and stream.isatty() for stream in streams)
    return typed and (shown or noted)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """For a chat on a terminal: Ctrl-C is a key of the editor, or `answering` lets it interrupt.

    Pressed twice, the second one would else hit whatever comes after an answer.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def answering() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt; keys that are pressed do not show in the answer."""
    if not is_interactive():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def open_prompt(*, history: bool) -> Prompt:
    """The one for this process. history: keep what is typed in a file of the user's cache."""
    if not is_interactive():
        return Lines()
    from deepmnn.cli.editor import Editor  # prompt_toolkit takes a while to import

    return Editor(history=history)
