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
    └── StorageError           disk full, no permission, target already exists

Each message has three parts: what was found, what was expected, what to do next.
"""

from __future__ import annotations


class DeepmnnError(Exception):
    """Base of all deepmnn errors.

    Args:
        found: what was met, with names and values.
        expected: what would have been right.
        hint: what to do next.
    """

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        self.found, self.expected, self.hint = found, expected, hint
        parts = [found]
        if expected:
            parts.append(f"expected {expected}")
        message = "; ".join(parts)
        super().__init__(f"{message}. {hint}" if hint else message)


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


class StorageError(DeepmnnError):
    """Disk full, no permission, or the target already exists."""
