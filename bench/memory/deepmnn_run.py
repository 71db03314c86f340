"""deepmnn: one prompt and some steps; a line of JSON when a phase ends, and after each step.

    python -m bench.memory.deepmnn_run REQUEST

REQUEST is JSON: model, ids (a file of token ids: those of the prompt, then those to run in the
steps; greedy ones follow), tokens (of the prompt), steps, threads, limit (bytes; 0: none), logits
(the file for those of the prompt's last token and of the first steps; "": none).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

KV_DTYPE = "bf16"
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
        memory=request["limit"] or None,
    )
    session = model.session()
    tell("load", began, streaming={"split": model.split.line() if model.split else "all mapped"})
    before = streaming(model)

    began = perf_counter()
    logits = session.prefill(ids)
    now = streaming(model)
    tell("prefill", began, streaming=difference(before, now))
    before, kept = now, [logits]

    began = perf_counter()
    for step in range(1, steps + 1):
        token = given[step - 1] if step <= len(given) else int(logits.argmax())
        logits = session.decode(token)
        tell("decode", began, id=token, streaming=difference(before, streaming(model)))
        if step <= KEPT_STEPS:
            kept.append(logits)
        if request["logits"] and step == min(KEPT_STEPS, steps):
            np.save(request["logits"], np.stack(kept))
    sys.stdout.flush()
    os._exit(0)


def tell(phase: str, began: float, **fields: Any) -> None:
    """Prints a phase that ends now."""
    print(json.dumps({"phase": phase, "seconds": perf_counter() - began, **fields}), flush=True)


def streaming(model: Any) -> dict[str, float]:
    """The core's counters of what it streams; empty where it streams nothing."""
    return dict(model.backend.model.streaming)


def difference(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """What a phase added to the counters."""
    return {name: value - before.get(name, 0) for name, value in now.items()}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
