"""What guessing ahead brings on this machine: decode with guesses and without, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from deepmnn.engine.engine import Engine
from deepmnn.text.sampling_params import SamplingParams

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM


@dataclass(frozen=True)
class Guessing:
    """Greedy answers to random prompts, which tend to repeat themselves: real text differs.

    Attributes:
        prompts: that run together.
        plain, guessing: tokens a second, decode alone; of the fastest runs.
        acceptance: part of the guesses that were right; None where none were made.
        tokens_per_step: of one answer.
    """

    prompts: int
    plain: float
    guessing: float
    acceptance: float | None
    tokens_per_step: float


def measure_guessing(
    model: LLM, prompt_tokens: int, new_tokens: int, prompts: int, repeat: int
) -> Guessing | None:
    """None where the model does not guess. Raises as a request does that does not fit."""
    if model.engine.speculation is None:
        return None
    runs = {
        guess: [_run(model, prompt_tokens, new_tokens, prompts, guess) for _ in range(repeat)]
        for guess in (False, True)
    }
    plain, guessing = (max(run.speed for run in runs[guess]) for guess in (False, True))
    made = runs[True]
    drafted, accepted = sum(run.drafted for run in made), sum(run.accepted for run in made)
    return Guessing(
        prompts,
        plain,
        guessing,
        accepted / drafted if drafted else None,
        sum(run.tokens for run in made) / sum(run.steps for run in made) / prompts,
    )


@dataclass(frozen=True)
class _Run:
    tokens: int
    steps: int
    seconds: float
    drafted: int
    accepted: int

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def _run(model: LLM, prompt_tokens: int, new_tokens: int, prompts: int, guess: bool) -> _Run:
    def work(engine: Engine) -> _Run:
        ids = np.random.default_rng(0).integers(0, model.vocab_size, (prompts, prompt_tokens))
        params = SamplingParams(max_tokens=new_tokens + 1, ignore_eos=True)
        speculation = engine.speculation
        try:
            engine.speculation = speculation if guess else None
            made = [engine.submit(prompt, params) for prompt in ids.tolist()]
            while not all(sequence.completion_tokens for sequence in made):
                engine.step()
            before, steps, began = sum(s.completion_tokens for s in made), 0, perf_counter()
            while engine.scheduler.busy:
                engine.step()
                steps += 1
        finally:
            engine.speculation = speculation
        return _Run(
            sum(s.completion_tokens for s in made) - before,
            max(1, steps),
            perf_counter() - began,
            sum(s.drafted_tokens for s in made),
            sum(s.accepted_tokens for s in made),
        )

    return model.driver.run(work)
