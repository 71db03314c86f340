"""Answers from a model in a short budget, while reads fail or the process is killed.

python streaming_child.py MODEL MEMORY GATE     answers all prompts, round after round, while
                                                GATE comes and goes; prints "failed good"
python streaming_child.py MODEL MEMORY          answers until it is killed; prints each answer
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepmnn
from deepmnn.errors import ArtifactError

PROMPTS = [[5, 17, 200, 33, 33, 9], [7], [8, 9, 10] * 30, [40, 2], [120, 99, 3, 3]]
PARAMS = deepmnn.SamplingParams(max_tokens=12, ignore_eos=True)


def answers(model: deepmnn.LLM) -> list[list[int] | None]:
    """Of each prompt, all of them together; None for one that failed."""
    found: list[list[int] | None] = [[] for _ in PROMPTS]
    events = [(index, model.stream(prompt, PARAMS)) for index, prompt in enumerate(PROMPTS)]
    for index, chunks in events:
        try:
            found[index] = [token for chunk in chunks for token in chunk.token_ids]
        except ArtifactError as error:
            if "cannot be read" not in str(error):
                raise
            found[index] = None
    return found


def main(model: Path, memory: int, gate: Path | None) -> None:
    want = answers(deepmnn.load(model))
    streamed = deepmnn.load(model, memory=memory)
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
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
