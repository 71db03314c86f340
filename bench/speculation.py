"""What guessing ahead brings: tokens a second with guesses and without, in turns.

    python -m bench.speculation               # tiny-r1: held-out problems, also asked twice
    python -m bench.speculation MODEL ...     # a language model: texts that repeat
    python -m bench.speculation --shapes      # a 1.5B shape, guessed for by a 0.5B one

Prints a Markdown table: who guesses, answers at a time, tokens a second plain and guessing, their
ratio, how many guesses were made and are right, and how many steps plain decoding takes for one
of guessing. Every row answers the same prompts greedily, so many at a time. Plain and guessing
runs take turns on one engine; speeds are medians, the ratio is the median of the turns'.

--shapes: random weights in two published shapes. Random weights foretell nothing, so acceptance is
simulated: the small model runs, for its cost, and the guesses are the large one's own tokens, each
wrong with the given chance. Depths 1, 2, ... and the adaptive one; among 16 answers that one alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import numpy as np
import typer

import deepmnn
from deepmnn.api.speculation import MODEL_TOKENS, MTP_TOKENS, NGRAM_TOKENS
from deepmnn.conversion.bundled import bundled_checkpoint
from deepmnn.conversion.convert import convert
from deepmnn.engine.engine import Engine
from deepmnn.engine.sequence import Sequence
from deepmnn.engine.speculation.depth import Depth, Fixed
from deepmnn.engine.speculation.drafter import Guess, Lookup, Reader
from deepmnn.engine.speculation.model import ModelDrafter
from deepmnn.engine.speculation.mtp import MtpDrafter
from deepmnn.engine.speculation.ngram import NgramDrafter
from deepmnn.engine.speculation.speculation import Speculation

CODE = """def area(width: float, height: float) -> float:
    if width < 0 or height < 0:
        raise ValueError("sizes are not negative")
    return width * height

def volume(width: float, height: float, depth: float) -> float:
    if depth < 0:
        raise ValueError("sizes are not negative")
    return area(width, height) * depth
"""
TEXT = (
    "The lighthouse at Cape Wrath was built in 1828 by Robert Stevenson. Its light can be seen for "
    "22 miles. It was manned until 1998, when it was converted to automatic operation. The "
    "buildings of the keepers stand empty, but for a small café that is open all the year."
)
PROMPTS = [
    f"Repeat this code exactly:\n\n{CODE}",
    f"Rename the function `area` to `surface` in this code and write all of it:\n\n{CODE}",
    f"Add a docstring to each function of this code and write all of it:\n\n{CODE}",
    f"Repeat this text word for word: {TEXT}",
    f"Summarise this text, quoting its sentences: {TEXT}",
    f"Correct the spelling of this text: {TEXT.replace('the', 'teh')}",
]
SMALL = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
"""Qwen2.5-0.5B, in the config of R1-Distill-Qwen-1.5B."""


@dataclass
class Run:
    """Decoding: tokens, seconds and steps; guesses made and right."""

    tokens: int
    seconds: float
    steps: int
    drafted: int
    accepted: int
    answers: list[list[int]]

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Simulated:
    """Runs a model for its cost, and guesses what will be said, wrong with a given chance."""

    kinds: Mapping[str, float] = {"model": 0.6}

    def __init__(self, model: ModelDrafter, truth: list[list[int]], right: float) -> None:
        self.most, self._model, self._right = model.most, model, right
        self._truth = truth
        self._random = random.Random(0)

    @property
    def following(self) -> bool:
        """See `Reader`."""
        return self._model.following

    @property
    def read_tokens(self) -> int:
        """See `Reader`."""
        return self._model.read_tokens

    def offer(self, sequence: Sequence, most: int) -> List[str]:
        """See `Reader`."""
        return self._model.offer(sequence, most)

    def follow(self, sequence: Sequence) -> None:
        """See `Drafter`."""
        self._model.follow(sequence)

    def propose(self, asked: List[tuple[Sequence, int]]) -> list[Guess]:
        """See `Drafter`."""
        self._model.propose(asked)
        tokens = [self._tokens(sequence, count) for sequence, count in asked]
        return [Guess(each, ["model"] * len(each)) for each in tokens]

    def forget(self, sequence: Sequence) -> None:
        """See `Drafter`."""
        self._model.forget(sequence)

    def _tokens(self, sequence: Sequence, count: int) -> list[int]:
        known, prompt = len(sequence.ids), sequence.ids[: sequence.prompt_tokens]
        ids = next(ids for ids in self._truth if ids[: len(prompt)] == prompt)
        tokens = ids[known : known + count]
        return [token if self._random.random() < self._right else token ^ 1 for token in tokens]


def decode(
    model: deepmnn.LLM,
    prompts: list[list[int]],
    params: deepmnn.SamplingParams,
    guess: Speculation | None,
) -> Run:
    """Answers the prompts together; times the steps behind the prompts."""

    def work(engine: Engine) -> Run:
        engine.speculation = guess
        made = [engine.submit(ids, params) for ids in prompts]
        while not all(sequence.completion_tokens for sequence in made):
            engine.step()
        before = sum(sequence.completion_tokens for sequence in made)
        steps, began = 0, perf_counter()
        while engine.scheduler.busy:
            engine.step()
            steps += 1
        seconds = perf_counter() - began
        engine.speculation = None
        drafted = sum(sequence.drafted_tokens for sequence in made)
        accepted = sum(sequence.accepted_tokens for sequence in made)
        count = sum(sequence.completion_tokens for sequence in made) - before
        return Run(count, seconds, steps, drafted, accepted, [s.ids for s in made])

    return model.driver.run(work)


def all_of(
    model: deepmnn.LLM,
    groups: list[list[list[int]]],
    params: deepmnn.SamplingParams,
    guess: Speculation | None,
) -> Run:
    """One group after the other."""
    runs = [decode(model, group, params, guess) for group in groups]
    return Run(
        sum(run.tokens for run in runs),
        sum(run.seconds for run in runs),
        sum(run.steps for run in runs),
        sum(run.drafted for run in runs),
        sum(run.accepted for run in runs),
        [ids for run in runs for ids in run.answers],
    )


def row(
    model: deepmnn.LLM,
    name: str,
    groups: list[list[list[int]]],
    params: deepmnn.SamplingParams,
    rounds: int,
    made: Callable[[Engine], Speculation],
) -> None:
    """Prints one line of the table."""
    guess = model.driver.run(made)
    all_of(model, groups, params, guess)
    plain, guessing = [], []
    for _ in range(rounds):
        plain.append(all_of(model, groups, params, None))
        guessing.append(all_of(model, groups, params, guess))
    ratio = median(g.speed / p.speed for g, p in zip(guessing, plain, strict=True))
    drafted, accepted = sum(r.drafted for r in guessing), sum(r.accepted for r in guessing)
    steps = sum(r.steps for r in plain) / sum(r.steps for r in guessing)
    same = sum(a == b for a, b in zip(plain[0].answers, guessing[0].answers, strict=True))
    print(
        f"| {name} | {len(groups[0])} | {median(r.speed for r in plain):.1f} "
        f"| {median(r.speed for r in guessing):.1f} | {ratio:.2f} "
        f"| {drafted // rounds} | {accepted / drafted if drafted else 0:.0%} | {steps:.2f} "
        f"| {same} of {len(plain[0].answers)} |",
        flush=True,
    )


def speculation(
    engine: Engine, lookup: Lookup | None, model: Reader | None, depth: Depth | None = None
) -> Speculation:
    """As `deepmnn.load` makes it."""
    rows = min(engine.max_rows, engine.scheduler.max_batch_tokens)
    return Speculation(engine.manager, rows, lookup, model, depth)


def with_drafts(engine: Engine, lookup: Lookup | None, depth: Depth | None = None) -> Speculation:
    """The model's own draft part, and what is looked up."""
    part = MtpDrafter(engine.backend, engine.cache, MTP_TOKENS)
    return speculation(engine, lookup, part, depth)


def measure(model: deepmnn.LLM, name: str, ids: list[list[int]], tokens: int, rounds: int) -> None:
    """A model's rows: its prompts one by one, and 4 and 16 together."""
    params = deepmnn.SamplingParams(max_tokens=tokens)
    for batch in (1, 4, 16):
        count = -(-len(ids) // batch) * batch
        prompts = [ids[n % len(ids)] for n in range(count)]
        groups = [prompts[n : n + batch] for n in range(0, count, batch)]
        row(model, f"{name}, ngram", groups, params, rounds,
            lambda engine: speculation(engine, NgramDrafter(NGRAM_TOKENS), None))  # fmt: skip
        if model.backend.draft_state is not None:
            row(model, f"{name}, mtp", groups, params, rounds,
                lambda engine: with_drafts(engine, None))  # fmt: skip
            row(model, f"{name}, mtp, always 1", groups, params, rounds,
                lambda engine: with_drafts(engine, None, Fixed(1)))  # fmt: skip


def shapes(
    out: Path, tokens: int, rounds: int, rates: list[float], depths_tried: list[int]
) -> None:
    """A 1.5B shape with a 0.5B one, both with random weights of 4 bits."""
    config = json.loads(Path("bench/configs/r1-distill-qwen-1.5b.json").read_text())
    paths = []
    for name, change in (("large", {}), ("small", SMALL)):
        source = out / f"{name}-source"
        source.mkdir(parents=True, exist_ok=True)
        (source / "config.json").write_text(json.dumps(config | change))
        paths.append(out / name)
        if not paths[-1].exists():
            convert(source, paths[-1], quant="w4", random_weights=True)
    large, small = (deepmnn.load(p, speculate="off", cache_tokens=16_384) for p in paths)
    vocab = large.vocab_size
    for batch in (1, 16):
        rng = np.random.default_rng(batch)
        prompts = rng.integers(0, vocab, (batch, 128)).tolist()
        params = deepmnn.SamplingParams(max_tokens=tokens, ignore_eos=True)
        truth = decode(large, prompts, params, None).answers
        for rate in rates:
            tried = depths_tried if batch == 1 else []
            depths: list[Depth | None] = [*(Fixed(d) for d in tried), None]
            for depth in depths:
                deep = isinstance(depth, Fixed)
                most = depth.depth if isinstance(depth, Fixed) else MODEL_TOKENS
                drafter = ModelDrafter(small.new_engine(), vocab, most)
                simulated = Simulated(drafter, truth, rate)
                name = (
                    f"1.5B with 0.5B, {rate:.0%} right, {f'depth {most}' if deep else 'adaptive'}"
                )
                row(large, name, [prompts], params, rounds,
                    lambda engine: speculation(engine, None, simulated, depth))  # noqa: B023  # fmt: skip


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Models with a tokenizer.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Runs of either kind.")] = 5,
    with_shapes: Annotated[bool, typer.Option("--shapes", help="Random weights.")] = False,
    out: Annotated[Path, typer.Option(help="Where those are built.")] = Path("build/speculation"),
    rates: Annotated[str, typer.Option(help="Acceptance that is simulated.")] = "0.6,0.8",
    depths: Annotated[str, typer.Option(help="Guesses a step, beside the best.")] = "1,2,3,4,6,8",
) -> None:
    print(
        "| who guesses | answers | plain tok/s | guessing | ratio | guesses | right | steps saved "
        "| same |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    if with_shapes:
        tried = [int(depth) for depth in depths.split(",") if depth]
        shapes(out, tokens, rounds, [float(rate) for rate in rates.split(",")], tried)
        return
    for name in models or []:
        model = deepmnn.load(name, speculate="off")
        chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        measure(model, Path(name).name, [model.encode(chat) for chat in chats], tokens, rounds)
    if not models:
        checkpoint = bundled_checkpoint()
        lines = (checkpoint / "held_out.jsonl").read_text().splitlines()[:16]
        model = deepmnn.load(checkpoint, speculate="mtp")
        asked = [
            model.encode([{"role": "user", "content": json.loads(line)["question"]}])
            for line in lines
        ]
        measure(model, "held-out", asked, tokens, rounds)
        answers = decode(model, asked, deepmnn.SamplingParams(max_tokens=tokens), None).answers
        again = [[*said, *ids] for said, ids in zip(answers, asked, strict=True)]
        measure(model, "asked again", again, tokens, rounds)


if __name__ == "__main__":
    typer.run(main)
