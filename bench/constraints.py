"""What a grammar costs: decode steps of answers held to a JSON schema, and of free ones.

    python bench/constraints.py [MODEL ...]

Prints a Markdown table for tiny-r1 and every converted model given, which need a tokenizer. Free
and held answers take turns on the same engine. They have the same prompts, seeds and numbers of
tokens, so each run repeats the one before: of every step the fastest of all rounds counts, as
disturbances make a step longer, never shorter. "loss" is how much longer a held step takes; "mask"
and "take" are the parts of that, in microseconds of one answer: to find what may come next and
apply it to the logits, and to go on in the grammar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer

import deepmnn
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.engine.engine import Engine
from deepmnn.text.constraint import Constraint, json_answer
from deepmnn.text.json_schema import checked_schema

PROMPT_TOKENS, WARM_UP = 32, 4
BATCHES = [1, 16]


def records(text: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list without end: texts, of which nearly all tokens may be part, and what
    only a few may."""
    record = {
        "type": "object",
        "properties": {
            "name": text,
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["person", "place", "thing"]},
            "tags": {"type": "array", "items": text, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": record, "minItems": 10_000}


SCHEMAS = {
    "any texts": records({"type": "string"}),
    "up to 40 characters": records({"type": "string", "maxLength": 40}),
}
"""A length is more work: each character leads to a state that has not been seen yet."""


@dataclass
class Run:
    """Seconds of each step, and in the parts of a constraint."""

    steps: list[float]
    mask: float = 0.0
    take: float = 0.0


def run(model: deepmnn.LLM, batch: int, steps: int, schema: dict[str, Any] | None) -> Run:
    """Decodes `batch` answers, held to a schema or free; times the steps after the first few."""
    answer = None if schema is None else json_answer(checked_schema(schema, "schema"))
    spent = {"mask": 0.0, "accept": 0.0}

    def timed(name: str) -> Callable[..., Any]:
        call = getattr(Constraint, name)

        @wraps(call)
        def timing(*arguments: Any) -> Any:
            began = perf_counter()
            try:
                return call(*arguments)
            finally:
                spent[name] += perf_counter() - began

        return timing

    def work(engine: Engine) -> list[float]:
        made = []
        for number in range(batch):
            ids = np.random.default_rng(number).integers(3, 200, PROMPT_TOKENS).tolist()
            params = deepmnn.SamplingParams(temperature=1.0, seed=number, ignore_eos=True)
            constraint = answer and model.grammars.constraint(answer, None)
            made.append(engine.submit(ids, params, None, constraint))
        while not all(sequence.completion_tokens > WARM_UP for sequence in made):
            engine.step()
        spent.update(mask=0.0, accept=0.0)
        seconds = []
        for _ in range(steps):
            began = perf_counter()
            told = engine.step()
            seconds.append(perf_counter() - began)
            assert len(told) == batch, "an answer has ended"
        for sequence in made:
            assert sequence.finish_reason is None, sequence.error
            engine.cancel(sequence)
        return seconds

    mask = patch.object(Constraint, "mask", timed("mask"))
    with mask, patch.object(Constraint, "accept", timed("accept")):
        seconds = model.driver.run(work)
    return Run(seconds, spent["mask"] / steps / batch, spent["accept"] / steps / batch)


def fastest(runs: list[Run]) -> float:
    """The mean of every step's fastest time, in seconds."""
    return float(np.min([each.steps for each in runs], axis=0).mean())


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Converted models.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = 100,
    rounds: Annotated[int, typer.Option(help="Runs of either kind.")] = 5,
) -> None:
    print(
        "| model | vocabulary | answers | schema | free ms | held ms | loss | mask µs | take µs |"
    )
    print("|---|--:|--:|---|--:|--:|--:|--:|--:|")
    for name in models or [str(bundled_checkpoint())]:
        model = deepmnn.load(name, speculate="off")
        for batch in BATCHES:
            free: list[Run] = []
            held: dict[str, list[Run]] = {kind: [] for kind in SCHEMAS}
            for _ in range(rounds):
                free.append(run(model, batch, steps, None))
                for kind, schema in SCHEMAS.items():
                    held[kind].append(run(model, batch, steps, schema))
            without = fastest(free)
            for kind, runs in held.items():
                seconds = fastest(runs)
                mask, take = (min(getattr(each, p) for each in runs) for p in ("mask", "take"))
                print(
                    f"| {model.artifact.path.name} | {model.vocab_size} | {batch} | {kind} "
                    f"| {1e3 * without:.2f} | {1e3 * seconds:.2f} "
                    f"| {100 * (seconds / without - 1):+.1f} % | {1e6 * mask:.0f} "
                    f"| {1e6 * take:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
