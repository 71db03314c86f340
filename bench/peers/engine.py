"""What an engine's module defines, and what is measured.

It imports only the standard library: it runs under any engine's interpreter.
"""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

Config = Mapping[str, Any]
"""A model's config.json."""


class Session(Protocol):
    """A loaded model that reads prompts and continues them, several sequences together."""

    most: int | None
    """The most sequences that run together; None: any number."""

    def reserve(self, batch: int, tokens: int) -> None:
        """Makes room for `batch` sequences of `tokens` tokens each; drops earlier ones."""

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Drops earlier sequences and reads the prompts, to the logits of each last token."""

    def step(self, tokens: Sequence[int]) -> None:
        """Runs the next token of every sequence, to its logits.

        An engine that cannot be given a token takes the most likely one.
        """


class Builder(Protocol):
    """A module of this package that makes models. At import it needs only the standard library.

    NEEDS: the module whose model this one converts; "" for none.
    """

    NEEDS: str

    def build(self, config: Path, out: Path, needed: Path | None, source: Path | None) -> str:
        """Writes a model of random weights into the directory out; returns its path in there.

        config: a config.json. needed: the model of NEEDS. source: the directory that the user
        gave for this module.
        """


class Engine(Protocol):
    """A module of this package that runs models. At import it needs only the standard library.

    TITLE: its name in the tables. BUILDER: the module that makes its models, often itself.
    SETTINGS: how it runs them, for the report.
    """

    TITLE: str
    BUILDER: str
    SETTINGS: str

    def version(self, source: Path | None) -> str | None:
        """The installed version, once all its modules are imported; None: it is missing."""

    def exceeds(self, isa: str, source: Path | None) -> str:
        """Why it cannot be limited to an instruction set ("avx2"), as installed; "" if it can.

        deepmnn's own switch, the environment variable DEEPMNN_ISA, is already set.
        """

    def refuses(self, config: Config) -> str:
        """Why it cannot run such a model; "" if it can."""

    def load(self, model: Path, threads: int, source: Path | None) -> Session:
        """The model, ready to run."""


@dataclass(frozen=True)
class Case:
    """One measurement: a prompt of `tokens` tokens for each of `batch` sequences, then `steps`.

    With 0 steps the prompt is timed, `repeat` times; otherwise each step is timed.
    """

    tokens: int
    batch: int = 1
    steps: int = 0
    repeat: int = 1

    @property
    def name(self) -> str:
        """As in the tables and files."""
        if not self.steps:
            return f"prefill {self.tokens}"
        name = f"decode at {self.tokens}"
        return name if self.batch == 1 else f"{name}, batch {self.batch}"


FULL = (
    Case(128, repeat=8),
    Case(512, repeat=2),
    Case(2048),
    Case(128, steps=64),
    Case(4096, steps=32),
    Case(128, batch=4, steps=32),
    Case(128, batch=16, steps=32),
)
QUICK = (
    Case(128, repeat=2),
    Case(512),
    Case(128, steps=16),
    Case(128, batch=4, steps=8),
    Case(128, batch=16, steps=8),
)


@dataclass
class Timing:
    """Wall times of one case in one process, one for each repetition or step."""

    seconds: list[float] = field(default_factory=list)
    missing: str = ""
    """Why there are none."""


@dataclass
class Cold:
    """A cold start in a process of its own, with no file of the model in the page cache.

    seconds: from loading the model to the logits of a short prompt. disk_seconds: what the disk
    needs to read the files once; None where it cannot be measured. nbytes: size of the files.
    """

    seconds: float | None = None
    disk_seconds: float | None = None
    nbytes: int = 0
    missing: str = ""
    """Why there is no time."""


@dataclass
class Measured:
    """What one process measured of one engine and model.

    load_seconds: from loading the model to the logits of a prompt of one token, with its files in
    the page cache. peak_nbytes: the most memory that the process held, mapped files included;
    own_nbytes: what it held at the end without mapped files. cold: measured by another process.
    """

    load_seconds: float
    peak_nbytes: int
    own_nbytes: int
    timings: dict[str, Timing]
    cold: Cold = field(default_factory=Cold)

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Measured:
        """The inverse of `dataclasses.asdict`."""
        timings = {name: Timing(**timing) for name, timing in fields["timings"].items()}
        return Measured(**{**fields, "timings": timings, "cold": Cold(**fields["cold"])})


def commit(folder: Path) -> str:
    """What git calls the state of a checkout; "" where there is no git or no checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--tags", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def cases_of(fields: Sequence[Mapping[str, Any]]) -> list[Case]:
    """The inverse of `as_fields`."""
    return [Case(**case) for case in fields]


def as_fields(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(case) for case in cases]


def engine(name: str) -> Engine:
    """The engine of that name."""
    return cast(Engine, _module(name))


def builder(name: str) -> Builder:
    """The builder of that name."""
    return cast(Builder, _module(name))


def source_of(name: str) -> Path:
    """The source file of that engine or builder."""
    return Path(str(_module(name).__file__))


def _module(name: str) -> ModuleType:
    """A module of this package; a dotted name is one from elsewhere."""
    return importlib.import_module(name if "." in name else f"bench.peers.{name}")
