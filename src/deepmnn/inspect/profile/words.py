"""A profile's figures as people read them: the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence

from deepmnn.inspect.profile.costs import OUTSIDE
from deepmnn.inspect.profile.engine import MEANINGS
from deepmnn.inspect.profile.recorder import REST
from deepmnn.inspect.profile.result import Cost, Owner, Part, Phase, Profile
from deepmnn.inspect.profile.streaming import LayerReads, Streaming
from deepmnn.source.sizes import file_size

COST_COLUMNS = ("time", "µs a call", "calls", "GB/s", "limit", "G MAC/s", "limit", "binds")
THREAD_COLUMNS = ("busy", "stealing", "waiting")
LAYER_COLUMNS = ("waits a step", "reads a step", "bytes a step", "hits", "guesses used")
MEMORY_COLUMNS = ("memory", "resident", "held", "needed at once")

_CORE = {
    "checks": "checks the batch against the model and its cache",
    "placing": "finds the cache rows and the memory of activations",
    "rope tables": "sine and cosine of the new tokens' positions",
}
_MEANINGS = MEANINGS | _CORE | {REST: "not in any of the above"}


def seconds(value: float) -> str:
    """A duration of three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{three_digits(value / size)} {unit}"
    return f"{value * 1e9:.0f} ns"


def three_digits(value: float) -> str:
    """A number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2}f}"


def share(value: float) -> str:
    """A share: "12.3 %"."""
    return f"{value * 100:.1f} %"


def headline(phase: Phase) -> str:
    """What ran, and how quickly."""
    low, high = phase.context
    seen = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    runs = {"prefill": "prompt", "decode": "step"}[phase.name]
    cut = "" if phase.runs == phase.asked else f" of {phase.asked:,}, for want of time"
    many = "s" if phase.runs != 1 else ""
    each = seconds(phase.seconds / max(1, phase.runs))
    return (
        f"{three_digits(phase.tokens_per_second)} tok/s, {each} a {runs}; "
        f"{phase.runs:,} {runs}{many}{cut}, contexts of {seen} tokens"
    )


def machine(profile: Profile) -> str:
    """Its limits."""
    found = profile.machine
    if found is None:
        if profile.decode.streaming is not None:
            return "the machine's limits are not measured: that takes memory which no budget has"
        return "the machine's limits are not measured for this backend"
    return (
        f"this machine with {found.threads} threads, {found.isa}: reads "
        f"{found.read_bandwidth / 1e9:.1f} GB/s, multiplies {found.int8_macs / 1e9:.0f} G int8 "
        f"MAC/s, {found.f32_macs / 1e9:.0f} G float MAC/s"
    )


def cost_cells(cost: Cost) -> list[str]:
    """In the order of COST_COLUMNS."""
    limits = cost.limits

    def rate(amount: float) -> str:
        return three_digits(amount / cost.seconds / 1e9) if amount and cost.seconds else "-"

    def of_limit(value: float) -> str:
        return f"{value:.0%}" if value else "-"

    return [
        share(cost.share),
        three_digits(1e6 * cost.seconds / max(1, cost.calls)),
        f"{cost.calls:,}",
        rate(cost.nbytes),
        of_limit(limits.memory if limits else 0),
        rate(cost.macs),
        of_limit(limits.compute if limits else 0),
        (limits.binds if limits else "") or "-",
    ]


def thread_cells(cost: Cost) -> list[str]:
    """Shares of the threads' time, in the order of THREAD_COLUMNS."""
    whole = cost.busy + cost.stealing + cost.waiting
    if not whole:
        return ["-"] * 3
    return [f"{value / whole:.0%}" for value in (cost.busy, cost.stealing, cost.waiting)]


def thread_rows(phase: Phase) -> list[list[str]]:
    """Of each thread of the core: its number, and shares of its time as in THREAD_COLUMNS."""
    return [
        [f"thread {number}", *(f"{value / (sum(times) or 1.0):.0%}" for value in times)]
        for number, times in enumerate(phase.threads)
    ]


def part_rows(phase: Phase) -> list[tuple[str, str, str, str]]:
    """What a step does besides its ops: name, share, time of a step, meaning."""
    return [
        (
            part.name,
            share(part.share),
            seconds(max(0.0, part.seconds) / max(1, phase.steps)),
            _meaning(part),
        )
        for part in phase.parts
    ]


def memory_cells(owner: Owner) -> list[str]:
    """In the order of MEMORY_COLUMNS."""
    sizes = (owner.resident, owner.nbytes, owner.peak)
    return [owner.name, *("-" if size is None else file_size(size) for size in sizes)]


def system_words(phase: Phase) -> str:
    """Page faults, context switches and time in the operating system."""
    found = phase.system
    inside = found.user + found.system
    kernel = f", {found.system / inside:.0%} of it in the operating system" if inside else ""
    return (
        f"page faults: {found.minor_faults:,} without and {found.major_faults:,} with a read from "
        f"disk; context switches: {found.voluntary:,} to wait, {found.involuntary:,} because "
        f"another thread's turn had come; processor time: {seconds(inside)}{kernel}"
    )


def streaming_words(found: Streaming) -> list[str]:
    """What was read from the disk, and whether that took the time."""
    steps, whole = max(1, found.steps), found.seconds or 1.0
    said = [
        f"disk: {file_size(round(found.nbytes / steps))} a step in "
        f"{three_digits(found.reads / steps)} reads, {_rate(found.bandwidth)} while reading, "
        f"{_rate(found.disk)} when it had enough to do; "
        f"reading {share(found.reading / whole)} of the time, "
        f"steps waiting for it {share(found.waiting / whole)}"
    ]
    if found.hit_rate is not None:
        guesses = "none was guessed"
        if found.guesses:
            used = share(found.guesses_used / found.guesses)
            guesses = f"{found.guesses:,} were read on a guess, {used} of those were used"
        chosen = found.hits + found.misses
        said.append(
            f"experts: {share(found.hit_rate)} of {chosen:,} chosen ones were in memory; {guesses}"
        )
    disk, rest = seconds(found.disk_seconds / steps), seconds(found.compute_seconds / steps)
    slower = {"disk": "the disk", "compute": "the rest"}[found.binds]
    said.append(
        f"bound: the disk takes {disk} a step for what was missed, the rest takes {rest}; "
        f"{slower} is {share(found.bound_share)} of the {seconds(whole / steps)} that a step took"
    )
    return said


def layer_cells(found: LayerReads, steps: int) -> list[str]:
    """In the order of LAYER_COLUMNS."""
    steps, chosen = max(1, steps), found.hits + found.misses
    return [
        seconds(found.waiting / steps),
        three_digits(found.reads / steps),
        file_size(round(found.nbytes / steps)),
        share(found.hits / chosen) if chosen else "-",
        f"{found.guesses_used:,} of {found.guesses:,}" if found.guesses else "-",
    ]


def layer_name(found: LayerReads) -> str:
    """Its number, or what it is outside of."""
    return OUTSIDE if found.layer is None else f"layer {found.layer}"


def _rate(value: float) -> str:
    return f"{three_digits(value / 1e9)} GB/s"


def rss_words(phase: Phase) -> str:
    """Of the process."""
    if not phase.rss:
        return "the system does not tell how much of the process is in memory"
    return f"{file_size(phase.rss)} of the process in memory, {file_size(phase.peak_rss)} at most"


def busiest(costs: Sequence[Cost], most: int) -> Sequence[Cost]:
    """Those that took longest."""
    return sorted(costs, key=lambda cost: -cost.seconds)[:most]


def _meaning(part: Part) -> str:
    return _MEANINGS.get(part.name, "the backend's step")
