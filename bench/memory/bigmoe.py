"""BigMoeOnEdge: its command line and what it prints. Its checkout is built in `build`.

Its cache of experts gets what the limit leaves beside the other weights, which it reads into
memory of its own, and ROOM. Its own choice, `--cache-mb auto`, goes by the whole machine's memory.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.memory.run import Job, Told

SETTINGS = (
    "Q4_0, streamed with direct reads: `--overlap --dense-weights anon --io-threads 4`, and an "
    "expert cache of what the limit leaves"
)
ROOM = 350 << 20
"""Bytes for its code, KV cache, activations and read buffers."""
SPARE = 32
"""Tokens of a step beyond the prompt's: it may begin with a token of its own."""
LEAST_CACHE = 1500
"""MiB below which it wants `--force-cache`."""

_PREFILL = re.compile(r"^prefill: \d+ tokens, ([\d.]+) s .*model load ([\d.]+) s")
_STEP = re.compile(r'^BMOE_PROGRESS {"step":(\d+),.*?"wall_ms":([\d.]+)')


def command(job: Job) -> list[str]:
    """Streams with the options that its documentation recommends for a model far past memory."""
    assert job.source is not None
    words = [str(job.source / "build" / "cli" / "bmoe-cli"), "-m", str(job.model)]
    words += ["-p", job.text, "-n", str(job.steps), "-t", str(job.threads)]
    words += ["-c", str(-(-(job.tokens + job.steps + 8) // 256) * 256), "--progress"]
    words += ["--ubatch", str(job.tokens + SPARE)]  # its own choice takes memory from the cache
    words += ["--moe-stream", "--overlap", "--dense-weights", "anon", "--io-threads", "4"]
    if job.random:  # of flat logits, so that its tokens are random, too
        words += ["--temp", "1", "--top-k", "0", "--top-p", "1", "--seed", "1"]
    if "--cache-mb" not in job.extra:
        words += cache_words(job.model, job.limit)
    return [*words, *job.extra]


def cache_words(model: Path, limit: int) -> list[str]:
    """The size of its expert cache under a limit in bytes."""
    dense, experts = sizes(model)
    cache = experts if not limit else min(experts, limit - dense - ROOM)
    cache >>= 20
    words = ["--cache-mb", str(max(cache, 0))]
    return [*words, "--force-cache"] if 0 < cache < LEAST_CACHE else words


@functools.cache
def sizes(model: Path) -> tuple[int, int]:
    """Bytes of a GGUF file's weights: of all but the routed experts, and of these."""
    import gguf

    tensors = gguf.GGUFReader(model).tensors
    experts = sum(int(t.n_bytes) for t in tensors if "_exps." in t.name)
    return sum(int(t.n_bytes) for t in tensors) - experts, experts


def ends(line: str) -> str | None:
    """The prompt's end is told by its first token, that is one step late."""
    if "expert streaming ON" in line:
        return "load"
    if step := _STEP.match(line):
        return "prefill" if int(step[1]) == 1 else "decode"
    return None


def told(lines: Sequence[str]) -> Told:
    """From the summary at the end; only its steps where it did not come to that."""
    seconds: dict[str, float] = {}
    steps = [float(found[2]) / 1e3 for line in lines if (found := _STEP.match(line))]
    if steps:
        seconds["decode"] = sum(steps)
    for line in lines:
        if found := _PREFILL.match(line):
            seconds |= {"prefill": float(found[1]), "load": float(found[2])}
    summary = [line for line in lines if line.startswith(("moe-", "compute:", "prefill:"))]
    return Told(seconds, len(steps), [], {"summary": summary} if summary else {})


def version(source: Path | None) -> str:
    """As it says itself."""
    if source is None:
        return "version unknown"
    program = source / "build" / "cli" / "bmoe-cli"
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return "missing"
    return done.stdout.strip() or "version unknown"
