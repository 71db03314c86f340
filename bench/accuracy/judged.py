"""What the module of a judged engine defines.

It imports only the standard library: it runs under any engine's interpreter.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

Logits = Any
"""NDArray[np.float32]; numpy may be missing here."""

Pieces = Sequence[Sequence[int]]
"""Token ids of texts; each piece is read in a context of its own."""


@dataclass(frozen=True)
class Task:
    """A model to build.

    checkpoint: a Hugging Face directory. calibration: pieces of token ids; calibration_text: the
    same text as a file. needed: the models that this one is made from, by name. source: the
    directory that the user gave for the engine.
    """

    checkpoint: Path
    calibration: Pieces
    calibration_text: Path
    needed: Mapping[str, Path]
    threads: int
    source: Path | None


@dataclass(frozen=True)
class Stored:
    """The weights of a model as they lie on the disk.

    nbytes: of all tensors, without a file's other contents. embedding: the bytes of its table among
    them. formats: how "embedding", "head" and "others" are stored, in words.
    """

    nbytes: int
    embedding: int
    formats: Mapping[str, str] = field(default_factory=dict)


class Judged(Protocol):
    """A module of this package. At import it needs only the standard library.

    TITLE: the engine's name in the table. RECIPES: what it is judged with. TIMED: the module of
    bench.peers that times its models; "" if none does. NOTE: how it runs, for the report.
    """

    TITLE: str
    RECIPES: Sequence[str]
    TIMED: str
    NOTE: str

    def version(self, source: Path | None) -> str | None:
        """What is installed; None if something is missing."""

    def refuses(self, config: Mapping[str, Any], recipe: str) -> str:
        """Why it cannot run such a model, known without trying; "" if it may."""

    def needs(self, recipe: str) -> Sequence[str]:
        """The models that the recipe's is made from, each as "MODULE RECIPE"."""

    def build(self, recipe: str, out: Path, task: Task) -> str:
        """Writes a model into the directory `out`; returns its path in there."""

    def stored(self, model: Path, source: Path | None) -> Stored:
        """The sizes of its weights."""

    def logits(
        self, model: Path, pieces: Pieces, threads: int, source: Path | None
    ) -> Iterator[Logits]:
        """[tokens, vocab_size] after every token of each piece."""


def judged(name: str) -> Judged:
    """The module of that name; a dotted name is one from elsewhere."""
    found = importlib.import_module(name if "." in name else f"bench.accuracy.{name}")
    return cast(Judged, found)


def source_of(name: str) -> Path:
    """The source file of that module."""
    return Path(str(cast(Any, judged(name)).__file__))
