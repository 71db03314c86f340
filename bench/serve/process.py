"""What a process takes, as Linux counts it."""

from __future__ import annotations

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process, all threads."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def main_thread_seconds(pid: int) -> float:
    """Processor time of a process's first thread, to the nanosecond."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def memory(pid: int) -> dict[str, int]:
    """Bytes: "rss" and "peak" (mapped files included), "own" (without), of a process."""
    fields = _fields(Path(f"/proc/{pid}/status"))
    names = {"rss": "VmRSS", "peak": "VmHWM", "own": "RssAnon"}
    return {name: fields[key] for name, key in names.items()}


def shares(pid: int) -> dict[str, int]:
    """Bytes: "pss" (shared pages divided among who maps them), "private" of a process."""
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    return {"pss": fields["Pss"], "private": fields["Private_Clean"] + fields["Private_Dirty"]}


def _fields(path: Path) -> dict[str, int]:
    """Those in kB, as bytes."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = 1024 * int(words[0])
    return found
