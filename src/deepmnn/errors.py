"""Every error deepmnn raises on purpose.

    DeepmnnError
    ├── CheckpointError        what the user brings cannot be read
    │   └── TensorNotFoundError   a weight the model needs is not in the checkpoint
    ├── ConfigError            a config.json field is missing, has the wrong type or is out of range
    │   └── UnsupportedModelError a model_type, RoPE scaling or option we do not run
    ├── GraphError             a graph breaks a rule of the IR (a bug in a model file or a pass)
    ├── ArtifactError          a converted model is damaged, incomplete or of another version
    ├── TokenizerError         tokenizer files or a chat template cannot be used
    ├── MissingDependencyError an optional package is not installed
    ├── RequestError           a call's arguments are impossible (an empty prompt, an unknown token)
    │   └── ContextLengthError    prompt plus answer do not fit the context or the KV cache
    ├── OverloadedError        a server has as many requests as it takes at a time
    └── StorageError           disk full, no permission, target already exists

Each message has three parts: what was found, what was expected, what to do next. A part that names
an argument or a call is `Words`: Python says `overwrite=True` where the command line says
`--overwrite`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The same, said to a caller in Python and to somebody at a shell."""

    python: str
    shell: str

    def __str__(self) -> str:
        return self.python


def argument(name: str, rest: str = "") -> Words:
    """An argument by its Python name and by its flag, then the same words for both."""
    return Words(name + rest, f"--{name.replace('_', '-')}{rest}")


class DeepmnnError(Exception):
    """Base of all deepmnn errors.

    Args:
        found: what was met, with names and values.
        expected: what would have been right.
        hint: what to do next.

    Attributes:
        shell: the message as the command line prints it; `str` gives it for Python.
    """

    def __init__(
        self, found: str | Words, expected: str | Words = "", hint: str | Words = ""
    ) -> None:
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__(_message(str(found), str(expected), str(hint)))

    @property
    def shell(self) -> str:
        """The message in the words of the command line."""
        return _message(*(in_shell(part) for part in (self.found, self.expected, self.hint)))


def in_shell(part: str | Words) -> str:
    """A part of a message as the command line says it."""
    return part.shell if isinstance(part, Words) else part


def _message(found: str, expected: str, hint: str) -> str:
    message = f"{found}; expected {expected}" if expected else found
    return f"{message}. {hint}" if hint else message


def shown(value: object, most: int = 80) -> str:
    """A value as messages show it: its repr on one line, cut; its type where it has none."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of 5,000 digits, a class whose repr fails
        text = f"of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


class CheckpointError(DeepmnnError):
    """What the user brings cannot be read."""


class TensorNotFoundError(CheckpointError):
    """A weight the model needs is not in the checkpoint."""


class ConfigError(DeepmnnError):
    """A config.json field is missing, has the wrong type or is out of range."""


class UnsupportedModelError(ConfigError):
    """A model_type, RoPE scaling or option that deepmnn does not run."""


class GraphError(DeepmnnError):
    """A graph breaks a rule of the IR: a bug in a model file or a pass, never the user's fault."""


class ArtifactError(DeepmnnError):
    """A converted model directory is damaged, incomplete or of another version."""


class TokenizerError(DeepmnnError):
    """Tokenizer files or a chat template cannot be used."""


class MissingDependencyError(DeepmnnError):
    """An optional package is not installed, or is too old."""


class RequestError(DeepmnnError):
    """A call's arguments are impossible."""


class ContextLengthError(RequestError):
    """Prompt plus answer do not fit the context length or the KV cache."""


class OverloadedError(DeepmnnError):
    """A server has as many requests as it takes at a time: later it may answer."""


class StorageError(DeepmnnError):
    """Disk full, no permission, or the target already exists."""
