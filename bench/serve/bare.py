"""The bare engine: the same prompts given to `deepmnn.LLM`, in a process of its own.

    python -m bench.serve.bare VERB deepmnn REQUEST

VERB is `stream` (times) or `answers` (texts). REQUEST is JSON; the answer is one line of JSON
(bench.peers.worker).
"""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.peers.worker import main, read_files
from bench.serve.servers import KV_DTYPE, Room


def stream(name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """One answer for each prompt, all asked together: fields of figures.Stream."""
    import deepmnn

    asks = json.loads(Path(request["asks"]).read_text())
    read_files(Path(request["model"]))
    room = Room(len(asks), request["tokens"])
    model = deepmnn.load(
        request["model"],
        threads=request["threads"],
        kv_dtype=KV_DTYPE,
        cache_tokens=room.rows,
        max_sequences=room.sequences,
    )
    warm = deepmnn.SamplingParams(max_tokens=2, ignore_eos=True)
    model.generate([[token] * 32 for token in range(room.sequences)], warm)
    prompts = [ask["prompt"] for ask in asks]
    params = [deepmnn.SamplingParams(max_tokens=ask["tokens"], ignore_eos=True) for ask in asks]
    begin = perf_counter()
    times: list[list[float]] = [[] for _ in prompts]
    for chunk in model.stream(prompts, params):
        times[chunk.index] += [perf_counter()] * len(chunk.ids)
    return [
        {"sent": begin, "times": found, "tokens": len(found), "prompt_tokens": len(prompt)}
        for prompt, found in zip(prompts, times, strict=True)
    ]


def answers(name: str, request: dict[str, Any]) -> list[str]:
    """The whole greedy answers to what users say, reasoning first, one after another."""
    import deepmnn

    model = deepmnn.load(request["model"], threads=request["threads"])
    found = []
    for ask in request["asks"]:
        params = deepmnn.SamplingParams(max_tokens=ask["tokens"], temperature=0)
        answer = model.generate([{"role": "user", "content": ask["prompt"]}], params)
        found.append(answer.reasoning + answer.text)
    return found


if __name__ == "__main__":
    main({"stream": stream, "answers": answers})
