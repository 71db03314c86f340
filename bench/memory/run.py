"""One engine under one limit: what is asked of it, and what it says and takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES = ("load", "prefill", "decode")


@dataclass(frozen=True)
class Job:
    """A prompt to read and steps to take after it.

    Attributes:
        model: the engine's. source: its checkout. python: the interpreter for those in Python.
        ids: the file of the prompt's token ids, and of those to run in the steps; greedy ones
            follow. text: the prompt as text. tokens: of the prompt. random: its tokens are random,
            and an engine that chooses its own in the steps draws them.
        threads: worker threads. limit: bytes; 0: none.
        work: a folder for programs and logs. logits: the file for them, from an engine that can.
        extra: more words for the command line.
    """

    model: Path
    source: Path | None
    python: str
    ids: Path
    text: str
    tokens: int
    steps: int
    threads: int
    limit: int
    work: Path
    random: bool = False
    logits: Path | None = None
    extra: Sequence[str] = ()


@dataclass(frozen=True)
class Told:
    """What an engine prints, as far as it came.

    Attributes:
        seconds: wall time of its phases. steps: taken in "decode". ids: of the answer.
        own: its own counters by phase.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    ids: list[int] = field(default_factory=list)
    own: dict[str, Any] = field(default_factory=dict)


@dataclass
class Phase:
    """What a phase took: wall and processor seconds, bytes from the disk, page faults that waited
    for it, and the others. tokens: of the prompt or the answer; 0 for loading.
    """

    seconds: float
    tokens: int = 0
    read_nbytes: int = 0
    major: int = 0
    minor: int = 0
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Measured:
    """One run of one engine under one limit.

    Attributes:
        phases: those that it finished, and the steps that it came to, by name.
        peak_nbytes: the most that its group held, page cache included.
        failure: why it did not finish; "" when it did.
        distinct: different tokens of the answer; 0 where the engine does not tell them.
        same_bits: whether its logits are those without a limit; None: not compared.
        own: its own counters. command: what was run.
        disk: bytes per second of direct reads, the better of just before and just after; 0: none.
    """

    phases: dict[str, Phase] = field(default_factory=dict)
    peak_nbytes: int = 0
    failure: str = ""
    distinct: int = 0
    same_bits: bool | None = None
    own: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    disk: float = 0.0
