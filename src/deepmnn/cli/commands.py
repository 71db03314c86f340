"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from deepmnn.cli.console import err, visible
from deepmnn.cli.conversation import Conversation
from deepmnn.errors import RequestError

QUOTES = '"""'

_KEYS = f"""\
Several lines: between {QUOTES} and {QUOTES}, with Alt-Enter, or pasted.
A question that begins with a slash: put a space before it.
Ctrl-C stops an answer and keeps its beginning, or clears the line. Ctrl-D leaves."""


@dataclass(frozen=True)
class Command:
    """What is typed after its name, what it does, and the function that does it.

    run takes the conversation and what was typed, and returns what to say, or None to leave.
    """

    argument: str
    text: str
    run: Callable[[Conversation, str], str | None]
    takes_file: bool = False


def run(line: str, conversation: Conversation) -> bool:
    """Does what a line asks for; whether the chat goes on.

    Raises RequestError for an unknown command, and for what the command refuses; StorageError.
    """
    name, *argument = line.split(maxsplit=1)
    command = COMMANDS.get(_ALIASES.get(name.lower(), name.lower()))
    if command is None:
        raise RequestError(
            f"there is no command {name:.40}",
            "one that /help lists",
            "With a space before the slash it is a question.",
        )
    said = command.run(conversation, "".join(argument).strip())
    if said is not None:
        err.print(err.wrapped(visible(said)), style="dim", soft_wrap=True)
    return said is not None


def unquoted(text: str) -> str:
    """The text without the quotes around its lines."""
    text = text.strip()
    if text.count(QUOTES) == 2 and text.startswith(QUOTES) and text.endswith(QUOTES):
        return text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text


def is_open(text: str) -> bool:
    """Whether more lines belong to a text: its quotes have no end yet."""
    start = text.lstrip().removeprefix("/system").lstrip()
    return start.startswith(QUOTES) and text.count(QUOTES) == 1


def _help(conversation: Conversation, argument: str) -> str:
    lines = [f"  {f'{name} {c.argument}':<15} {c.text}" for name, c in COMMANDS.items()]
    return "\n".join([*lines, _KEYS])


def _system(conversation: Conversation, argument: str) -> str:
    if not argument and conversation.system:
        return indent(conversation.system, "  ")
    if not argument:
        return "there is no system message; /system TEXT sets one"
    if argument == '""':
        conversation.system = None
        return "the system message is removed; the conversation goes on"
    conversation.system = unquoted(argument)
    return "the system message is set; the conversation goes on, /reset starts it over"


def _reset(conversation: Conversation, argument: str) -> str:
    conversation.turns.clear()
    kept = "; the system message stays" if conversation.system else ""
    return f"the conversation starts over{kept}"


def _save(conversation: Conversation, argument: str) -> str:
    path = _file(argument, "/save")
    conversation.save(path)
    return f"saved to {path}: {_turns(conversation)}"


def _load(conversation: Conversation, argument: str) -> str:
    path = _file(argument, "/load")
    loaded = Conversation.load(path)
    conversation.system, conversation.turns = loaded.system, loaded.turns
    last = f", the last: {conversation.turns[-1].question!r:.60}" if conversation.turns else ""
    return f"loaded {path}: {_turns(conversation)}{last}"


def _leave(conversation: Conversation, argument: str) -> None:
    return None


def _file(argument: str, command: str) -> Path:
    """Raises RequestError."""
    if not argument:
        raise RequestError(f"{command} has no file", f"{command} FILE")
    try:
        path = Path(argument).expanduser()
    except RuntimeError as error:  # ~ of nobody
        raise RequestError(f"{argument!r:.80}: {error}", "a file") from None
    if "\0" in argument:
        raise RequestError(f"{argument!r:.80} holds a NUL", "a file")
    return path


def _turns(conversation: Conversation) -> str:
    number = len(conversation.turns)
    return f"{number} question{'s' * (number != 1)} and answer{'s' * (number != 1)}"


COMMANDS = {
    "/help": Command("", "show this", _help),
    "/system": Command("[TEXT]", 'show or set the system message; "" removes it', _system),
    "/reset": Command("", "start over; the system message stays", _reset),
    "/save": Command("FILE", "write the conversation to a JSON file", _save, takes_file=True),
    "/load": Command("FILE", "go on with a saved conversation", _load, takes_file=True),
    "/bye": Command("", "leave", _leave),
}

_ALIASES = {"/exit": "/bye", "/quit": "/bye", "/?": "/help"}
