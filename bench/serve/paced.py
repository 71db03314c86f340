"""A server whose engine computes nothing: what it takes is HTTP, text and scheduling alone.

    python -m bench.serve.paced PORT RESULT STEP_MS STREAMS [profile]

It serves tiny-r1 with a backend that sleeps for each step and then gives tokens of its own. At the
end (SIGTERM) it writes RESULT, a JSON file: the time between steps of STREAMS answers, and with
`profile` processor time by part.
"""

from __future__ import annotations

import cProfile
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

import deepmnn
from deepmnn.backends.base import F32, Batch, Draw
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.graph.caches import CacheEntry

PARTS = {
    "deepmnn/text/": "text: detokenise, stop strings, reasoning, template",
    "tokenizers": "text: detokenise, stop strings, reasoning, template",
    "deepmnn/serve/protocols/": "events: JSON and SSE",
    "json/": "events: JSON and SSE",
    "deepmnn/serve/service.py": "mailbox, from the engine to the event loop",
    "deepmnn/engine/driver.py": "mailbox, from the engine to the event loop",
    "deepmnn/engine/request.py": "mailbox, from the engine to the event loop",
    "deepmnn/serve/metrics.py": "metrics and log",
    "prometheus_client/": "metrics and log",
    "deepmnn/serve/log.py": "metrics and log",
    "deepmnn/serve/": "guard and connection",
    "uvicorn/": "uvicorn, h11",
    "h11/": "uvicorn, h11",
    "httptools": "uvicorn, h11",
    "asyncio/": "asyncio, sockets",
    "selectors.py": "asyncio, sockets",
    "socket.py": "asyncio, sockets",
    "starlette/": "fastapi, starlette, pydantic",
    "fastapi/": "fastapi, starlette, pydantic",
    "pydantic": "fastapi, starlette, pydantic",
    "anyio/": "fastapi, starlette, pydantic",
    "deepmnn/": "engine",
    "bench/": "engine",
}
"""Part of a file's path → part of the cost; the first that fits."""


class PacedBackend:
    """Gives random printable tokens, one for each sequence after `seconds` of sleep.

    Attributes:
        steps: (begin, end, sequences) of each step, in seconds of perf_counter.
    """

    max_sequences: int | None = None
    outputs = ("logits",)
    draft_state: str | None = None
    caches: ClassVar = {"rows": CacheEntry(1)}

    def __init__(self, tokenizer: Any, vocab_size: int, seconds: float) -> None:
        self.vocab_size, self.seconds = vocab_size, seconds
        self.steps: list[tuple[float, float, int]] = []
        plain = [i for i in range(vocab_size) if tokenizer.decode([i]).isascii()]
        plain = [i for i in plain if tokenizer.decode([i]).strip()]
        self._tokens = np.random.default_rng(0).choice(plain, 4099).tolist()
        self._at = 0
        self._logits = np.zeros((4096, vocab_size), np.float32)

    def new_cache(
        self, blocks: int, block_size: int, dtype: str = "f32", recent_blocks: int | None = None
    ) -> Cache:
        return Cache(blocks, block_size)

    def step(self, cache: object, batch: Batch) -> F32:
        begin = time.perf_counter()
        time.sleep(self.seconds)
        self.steps.append((begin, time.perf_counter(), len(batch.context_lengths)))
        return self._logits[: len(batch.logit_rows)]

    def run(self, cache: object, batch: Batch) -> dict[str, F32]:
        return {"logits": self.step(cache, batch)}

    def sample(self, draws: list[Draw]) -> list[int]:
        count, tokens = len(draws), self._tokens
        self._at = (self._at + count) % (len(tokens) - count)
        return list(tokens[self._at : self._at + count])


@dataclass
class Cache:
    """Nothing is kept in it."""

    blocks: int
    block_size: int
    block_nbytes: int = 0
    recent_blocks: int = 0

    def copy_block(self, source: int, target: int) -> None:
        """Nothing to copy."""

    def read_block(self, block: int, rows: object) -> None:
        """Nothing to read."""

    def write_block(self, block: int, rows: object) -> None:
        """Nothing to write."""


def paced_model(seconds: float) -> deepmnn.LLM:
    """tiny-r1's tokenizer and configuration with a backend that only sleeps."""
    real = deepmnn.load(bundled_checkpoint(), threads=1)
    backend: Any = PacedBackend(real.tokenizer, real.vocab_size, seconds)
    return deepmnn.LLM(real.artifact, real.text_files, backend, real.options)


def between_steps(backend: PacedBackend, sequences: int) -> float:
    """Median seconds from the end of a step to the next one's begin, while so many answers run."""
    pairs = [
        begin - end
        for (_, end, count), (begin, _, following) in pairwise(backend.steps)
        if count == following == sequences
    ]
    return median(pairs) if pairs else 0.0


def parts(profiles: list[cProfile.Profile]) -> dict[str, float]:
    """Seconds of processor time by part; a built-in function counts for who calls it."""
    found: Counter[str] = Counter()
    for profile in profiles:
        for entry in profile.getstats():
            if isinstance(entry.code, str):
                continue
            part = _part(entry.code.co_filename)
            found[part] += entry.inlinetime
            for call in entry.calls or ():
                if isinstance(call.code, str):
                    found[part] += call.inlinetime
    return dict(found.most_common())


def _part(file: str) -> str:
    return next((part for piece, part in PARTS.items() if piece in file), "other")


def serve(port: int, result: Path, seconds: float, streams: int, profiled: bool) -> None:
    from deepmnn.serve.options import ServeOptions
    from deepmnn.serve.run import Server

    model = paced_model(seconds)
    profiles = []
    with Server(ServeOptions(port=port), "bench") as server:
        if profiled:
            profiles = [cProfile.Profile(time.thread_time) for _ in range(2)]
            server._call(profiles[0].enable)
            model.driver.run(lambda engine: profiles[1].enable())
        server.ready(model)
        server.handle_signals()
        server.join()
        if profiled:
            model.driver.run(lambda engine: profiles[1].disable())
    backend: Any = model.backend
    answer = {"between": between_steps(backend, streams), "parts": parts(profiles)}
    result.write_text(json.dumps(answer))


if __name__ == "__main__":
    port, result, step_ms, streams, *rest = sys.argv[1:]
    serve(int(port), Path(result), float(step_ms) / 1e3, int(streams), rest == ["profile"])
