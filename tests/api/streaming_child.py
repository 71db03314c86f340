"""Answers from a model in a short budget, while reads fail or until the process is killed.

python streaming_child.py MODEL GATE    answers all prompts, round after round, while GATE comes
                                        and goes; prints "failed good"
python streaming_child.py MODEL         answers until it is killed; prints "right" each time
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import deepmnn
from deepmnn.errors import ArtifactError

PROMPTS = [[5, 17, 200, 33, 33, 9], [7], [8, 9, 10] * 30, [40, 2], [120, 99, 3, 3]]
PARAMS = deepmnn.SamplingParams(max_tokens=12, ignore_eos=True)


def answer(model: deepmnn.LLM, prompt: list[int]) -> list[int] | None:
    """None for one that failed."""
    try:
        return model.generate(prompt, PARAMS).ids
    except ArtifactError as error:
        if "cannot be read" not in str(error):
            raise
        return None


def answers(model: deepmnn.LLM) -> list[list[int] | None]:
    """Of all prompts, asked together."""
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(partial(answer, model), PROMPTS))


def short_memory(model: Path) -> int:
    """In bytes: in which most experts are read."""
    split = deepmnn.load(model, memory="64GiB").split
    assert split is not None
    return split.least + (split.whole - split.least) // 8


def main(model: Path, gate: Path | None) -> None:
    want = answers(deepmnn.load(model))
    streamed = deepmnn.load(model, memory=short_memory(model))
    assert streamed.is_streamed
    if gate is None:
        while True:
            assert answers(streamed) == want
            print("right", flush=True)
    failed = good = 0
    for _ in range(20):
        gate.touch()
        for got, wanted in zip(answers(streamed), want, strict=True):
            assert got is None or got == wanted, "a wrong answer"
            failed, good = failed + (got is None), good + (got is not None)
        gate.unlink()
        assert answers(streamed) == want, "a wrong answer, after the disk is well again"
    print(failed, good)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
