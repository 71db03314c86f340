"""The line editor of a chat: history, pasted lines, completion of commands."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from deepmnn.artifact.cache import cache_directory
from deepmnn.cli.commands import COMMANDS, is_open
from deepmnn.cli.console import err
from deepmnn.cli.history import FileHistory
from deepmnn.errors import StorageError

HISTORY = "chat-history.jsonl"


class Editor:
    """Reads what is typed on the terminal.

    Args:
        history: keep it in a file of the user's cache, too.
    """

    def __init__(self, *, history: bool) -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            history=_history() if history else InMemoryHistory(),
            completer=_Commands(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_bindings(),
            output=create_output(always_prefer_tty=True),
        )

    def read(self) -> str | None:
        """The next question or command; None for Ctrl-D."""
        while True:
            try:
                return self._session.prompt(handle_sigint=False)
            except EOFError:
                return None
            except KeyboardInterrupt:
                err.say("Ctrl-D or /bye leaves", "dim")


class _Commands(Completer):
    """Completes commands, and the file after one that takes a file."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, argument = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if space:
            if name in COMMANDS and COMMANDS[name].takes_file:
                yield from self._paths.get_completions(Document(argument), event)
            return
        for command in COMMANDS:
            if command.startswith(text):
                yield Completion(command, start_position=-len(text))


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    editing = has_focus(DEFAULT_BUFFER)  # not in a search through the history

    @bindings.add("enter", filter=editing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=editing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c", filter=editing)
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings


def _history() -> History:
    try:
        return FileHistory(cache_directory() / HISTORY)
    except StorageError:  # there is no home directory
        return InMemoryHistory()
