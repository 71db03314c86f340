"""One engine in a process of its own: bench.peers' worker with verbs for accuracy.

python -m bench.accuracy.worker VERB MODULE REQUEST
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bench.accuracy.judged import Task, judged
from bench.peers.worker import Json, Verb, main, path_of


def version(name: str, request: Json) -> str | None:
    """What is installed."""
    return judged(name).version(path_of(request["source"]))


def build(name: str, request: Json) -> str:
    """Builds the recipe's model; returns its path inside `out`."""
    task = Task(
        checkpoint=Path(request["checkpoint"]),
        calibration=json.loads(Path(request["calibration"]).read_text()),
        calibration_text=Path(request["calibration_text"]),
        needed={name: Path(path) for name, path in request["needed"].items()},
        threads=request["threads"],
        source=path_of(request["source"]),
    )
    return judged(name).build(request["recipe"], Path(request["out"]), task)


def stored(name: str, request: Json) -> Json:
    """The sizes of the weights."""
    return asdict(judged(name).stored(Path(request["model"]), path_of(request["source"])))


def logits(name: str, request: Json) -> int:
    """Writes each piece's logits into `out`, as 0.npy and so on; returns how many there are."""
    import numpy as np

    pieces = json.loads(Path(request["pieces"]).read_text())
    source, out = path_of(request["source"]), Path(request["out"])
    count = 0
    rows = judged(name).logits(Path(request["model"]), pieces, request["threads"], source)
    for count, found in enumerate(rows, 1):
        np.save(out / f"{count - 1}.npy", np.ascontiguousarray(found, np.float32))
    return count


VERBS: dict[str, Verb] = {
    "version": version,
    "build": build,
    "stored": stored,
    "logits": logits,
}

if __name__ == "__main__":
    main(VERBS)
