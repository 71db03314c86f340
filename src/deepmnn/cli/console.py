"""What every verb prints with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

out = Console(highlight=False)
"""Results."""

err = Console(stderr=True, highlight=False)
"""Progress and errors, so that results can be piped."""


def file_size(nbytes: float) -> str:
    """Bytes for people: "9.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def count(number: float) -> str:
    """A parameter count for people: "3.2 M"."""
    for unit in ("", " k", " M", " B"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} T"


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(title=title or None, title_justify="left", title_style="bold", header_style="dim")
    for index, column in enumerate(columns):
        justify: JustifyMethod = "right" if index else "left"
        made.add_column(column, justify=justify, no_wrap=index > 0)
    return made


@contextmanager
def byte_progress(title: str) -> Iterator[Progress]:
    """A progress bar in bytes, on a terminal only."""
    columns = (
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress


class ConvertProgress:
    """Shows (bytes done, bytes in all, weight name) on a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def __call__(self, done: int, total: int, label: str) -> None:
        """One more weight is written."""
        self._progress.update(self._task, completed=done, total=total, description=label)
