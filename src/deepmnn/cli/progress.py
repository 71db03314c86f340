"""How far long work is: a bar on a terminal, else a line on stderr now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from deepmnn.cli.console import err, file_size

Report = Callable[[int, int, str], None]
"""Takes (done, in all, what is being done); anybody may call it as often as it likes."""

FIRST_LINE = 4.0
"""Seconds after which work is long enough to speak of."""

NEXT_LINE = 8.0
"""Seconds between lines."""

SHARE_TO_JUDGE_BY = 0.02
"""How much must be done before the time left is told."""


@contextmanager
def byte_progress(title: str) -> Iterator[Report]:
    """For work that is counted in bytes."""
    bar = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _shown(title, bar, file_size) as report:
        yield report


@contextmanager
def count_progress(title: str) -> Iterator[Report]:
    """For work that is counted in things."""
    bar = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _shown(title, bar, str) as report:
        yield report


@contextmanager
def work_progress(title: str) -> Iterator[Report]:
    """For work of several kinds, one after another, each with a label."""
    label = TextColumn("{task.fields[label]}", markup=False)
    bar = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), label)
    with _shown(title, bar, None) as report:
        yield report


@contextmanager
def status(title: str) -> Iterator[Callable[[str], None]]:
    """For work that only says what it is doing."""
    if err.is_terminal:
        with err.status(Text(title)) as spinner:
            yield lambda text: spinner.update(Text(text))
    else:
        with _Lines(title, str) as lines:
            yield lambda text: lines(0, 0, text)


@contextmanager
def _shown(
    title: str, bar: tuple[ProgressColumn, ...], figure: Callable[[int], str] | None
) -> Iterator[Report]:
    if not err.is_terminal:
        with _Lines(title, figure) as lines:
            yield lines
        return
    named = TextColumn("{task.description}", markup=False)
    with Progress(named, *bar, console=err, transient=True) as progress:
        task = progress.add_task(title, total=None, label="")
        yield lambda done, total, label: progress.update(
            task, completed=done, total=total, label=label
        )


class _Lines:
    """Prints the last report every few seconds, from a thread: the work may be silent for long."""

    def __init__(self, title: str, figure: Callable[[int], str] | None) -> None:
        self._title, self._figure = title, figure
        self._last = (0, 0, "")
        self._began = time.monotonic()
        self._phase = (self._began, 0)  # when this count began, and with how much
        self._finished = threading.Event()
        self._spoke = False
        self._thread = threading.Thread(target=self._speak, name="deepmnn-progress", daemon=True)

    def __call__(self, done: int, total: int, label: str) -> None:
        """Something is done. Less than before, or of another amount: a new count begins."""
        if done < self._last[0] or total != self._last[1]:
            self._phase = (time.monotonic(), done)
        self._last = (done, total, label)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finished.set()
        self._thread.join()
        if self._spoke and kind is None:
            self._print("done")

    def _speak(self) -> None:
        seconds = FIRST_LINE
        while not self._finished.wait(seconds):
            self._spoke = True
            self._print(self._progress())
            seconds = NEXT_LINE

    def _progress(self) -> str:
        done, total, label = self._last
        if total:
            began, first = self._phase
            known = done - first >= SHARE_TO_JUDGE_BY * total
            left = (time.monotonic() - began) * (total - done) / (done - first) if known else 0.0
            rest = f", about {left:.0f} s left" if left else ""
            what = (
                label if self._figure is None else f"{self._figure(done)} of {self._figure(total)}"
            )
            return f"{done / total:.0%}, {what}{rest}"
        return label or "working"

    def _print(self, text: str) -> None:
        err.say(f"{self._title}: {text}, {time.monotonic() - self._began:.0f} s", "dim")
