"""deepmnn: one prompt and some steps; a line of JSON when a phase ends, and after some steps.

    python -m bench.memory.deepmnn_run REQUEST

REQUEST is JSON: model, ids (a file of token ids: those of the prompt, then those to run in the
steps; greedy ones follow), tokens (of the prompt), steps, threads, limit (bytes; 0: none), logits
(the file for those of the prompt's last token and of the first steps; "": none).
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

KV_DTYPE = "int8"
EVERY = 8
KEPT_STEPS = 8
"""Steps whose logits are kept, to compare them bit for bit."""


def main(request: dict[str, Any]) -> None:
    import numpy as np

    import deepmnn
    import deepmnn.backends.cpu.backend  # load imports it when it is needed first

    known = [int(word) for word in Path(request["ids"]).read_text().split()]
    ids, given = known[: request["tokens"]], known[request["tokens"] :]
    steps = int(request["steps"])
    began = perf_counter()
    model = deepmnn.load(
        request["model"],
        "cpu",
        request["threads"],
        kv_dtype=KV_DTYPE,
        cache_tokens=len(ids) + steps,
        **_memory(deepmnn.load, request["limit"]),
    )
    session = model.session()
    tell("load", began)
    before = streaming(model)

    began = perf_counter()
    logits = session.prefill(ids)
    now = streaming(model)
    tell("prefill", began, streaming=difference(before, now))
    before, kept, answer = now, [logits], []

    began = perf_counter()
    for step in range(1, steps + 1):
        answer.append(given[step - 1] if step <= len(given) else int(logits.argmax()))
        logits = session.decode(answer[-1])
        if step <= KEPT_STEPS:
            kept.append(logits)
        if step % EVERY == 0 or step == steps:
            tell("decode", began, ids=answer, streaming=difference(before, streaming(model)))
    if request["logits"]:
        np.save(request["logits"], np.stack(kept))
    sys.stdout.flush()
    os._exit(0)


def _memory(load: Any, limit: int) -> dict[str, Any]:
    """The argument that holds deepmnn to the limit, where it has one."""
    known = "memory" in inspect.signature(load).parameters
    return {"memory": limit} if known and limit else {}


def tell(phase: str, began: float, **fields: Any) -> None:
    """Prints a phase that ends now."""
    print(json.dumps({"phase": phase, "seconds": perf_counter() - began, **fields}), flush=True)


def streaming(model: Any) -> dict[str, float]:
    """The core's counters of what it streams; empty where it streams nothing."""
    core = getattr(model.backend, "_model", None)
    return dict(getattr(core, "streaming", None) or {})


def difference(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What a phase added to the counters."""
    return {name: value - before.get(name, 0) for name, value in now.items()}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
