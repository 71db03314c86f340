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


def memory(pid: int) -> dict[str, int]:
    """Bytes: "rss" and "peak" (mapped files included), "own" (without), of a process."""
    fields = _sums(Path(f"/proc/{pid}/status").read_text())
    names = {"rss": "VmRSS", "peak": "VmHWM", "own": "RssAnon"}
    return {name: fields[key] for name, key in names.items()}


def shares(pid: int) -> dict[str, int]:
    """Bytes of a process: "rss", "pss" (shared pages divided among who maps them), "private", and
    "huge": in huge pages, which the kernel makes whenever it likes of memory that wants them.
    """
    return _shares(Path(f"/proc/{pid}/smaps_rollup").read_text())


def model_shares(pid: int, model: Path) -> dict[str, int]:
    """The same, of the model's files alone, as far as the process has them mapped."""
    found, inside = [], False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):  # the head of a mapping
            inside = str(model.resolve()) in line
        elif inside:
            found.append(line)
    return _shares("\n".join(found))


def _shares(text: str) -> dict[str, int]:
    fields = _sums(text)
    private = fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)
    rss, pss, huge = (fields.get(name, 0) for name in ("Rss", "Pss", "AnonHugePages"))
    return {"rss": rss, "pss": pss, "private": private, "huge": huge}


def _sums(text: str) -> dict[str, int]:
    """Lines like "Rss: 12 kB", equal names added up, as bytes."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = found.get(name, 0) + 1024 * int(words[0])
    return found
