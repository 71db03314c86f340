"""Runs a program in a group and counts what it read and faulted by the end of each phase."""

from __future__ import annotations

import math
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from bench.memory.group import Group

TICK = os.sysconf("SC_CLK_TCK")
STEPS = "decode"
LAST = 4
"""Lines of a failed program that its reason quotes at most."""


@dataclass(frozen=True)
class Counters:
    """Of a process since its start, all threads.

    read_nbytes: bytes from the disk, those of page faults too. major: page faults that waited for
    the disk. minor: the others. cpu_seconds: processor time. seconds: wall time.
    """

    read_nbytes: int = 0
    major: int = 0
    minor: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    @staticmethod
    def of(pid: int, began: float) -> Counters:
        """Raises OSError when the process is gone; one that has not been waited for is there."""
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        io = dict(line.split(": ") for line in lines)
        text = Path(f"/proc/{pid}/stat").read_text()
        stat = text[text.rindex(")") + 2 :].split()
        cpu = (int(stat[11]) + int(stat[12])) / TICK
        return Counters(int(io["read_bytes"]), int(stat[9]), int(stat[7]), cpu, monotonic() - began)

    def since(self, before: Counters) -> Counters:
        """The difference."""
        return Counters(
            self.read_nbytes - before.read_nbytes,
            self.major - before.major,
            self.minor - before.minor,
            self.cpu_seconds - before.cpu_seconds,
            self.seconds - before.seconds,
        )


@dataclass
class Watched:
    """What became of a program.

    Attributes:
        lines: what it printed, both streams.
        counters: at the end of each phase that it reached.
        code: its exit code, negative for a signal.
        peak: the most bytes that the group held. kills: how often it was full beyond help.
        timed_out: it was ended because it took too long.
        stopped: it was ended because it had taken steps for long enough.
    """

    lines: list[str] = field(default_factory=list)
    counters: dict[str, Counters] = field(default_factory=dict)
    code: int = 0
    peak: int = 0
    kills: int = 0
    timed_out: bool = False
    stopped: bool = False

    @property
    def failure(self) -> str:
        """Why it did not end well, in one line; "" if it did."""
        if self.stopped:
            return ""
        if self.timed_out:
            reached = ", ".join(self.counters) or "nothing"
            return f"ended because it took too long; it came to: {reached}"
        if self.kills:
            return "killed: the group was out of memory"
        if self.code:
            how = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
            words = [line.strip() for line in self.lines if line.strip()]
            return " / ".join([how, *words[-LAST:]])
        return ""


def watch(
    command: Sequence[str],
    group: Group,
    ends: Callable[[str], str | None],
    timeout: float,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stepping: float = math.inf,
) -> Watched:
    """Runs a program in the group to its end, or kills it after `timeout` seconds.

    ends: the phase whose end a printed line tells, or None; the last line of a phase counts.
    stepping: seconds of "decode" after which it may be ended, with the steps that it came to.
    """
    found, began = Watched(), monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=group.join,
    )
    with process:
        try:
            for line in _lines(process, timeout, found):
                found.lines.append(line)
                phase = ends(line)
                if phase:
                    with suppress(OSError, ValueError):
                        found.counters[phase] = Counters.of(process.pid, began)
                if phase == STEPS and _stepped(found) > stepping:
                    found.stopped = True
                    break
        finally:
            with suppress(ProcessLookupError):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            found.code = process.wait()
    found.peak, found.kills = group.peak, group.kills
    return found


def _stepped(found: Watched) -> float:
    """Seconds that the steps have taken."""
    now, before = found.counters.get(STEPS), found.counters.get("prefill")
    return now.seconds - before.seconds if now and before else 0.0


def _lines(process: subprocess.Popen[bytes], timeout: float, found: Watched) -> Iterator[str]:
    """What the program prints, until it closes its output or its time is over."""
    assert process.stdout is not None
    until, rest = monotonic() + timeout, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = until - monotonic()
            if left <= 0:
                found.timed_out = True
                return
            if not selector.select(left):
                continue
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, until - monotonic()))
