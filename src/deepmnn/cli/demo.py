"""deepmnn demo: a trained model answers questions it has never seen, offline, at once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.answer import show
from deepmnn.cli.console import file_size, out, table

if TYPE_CHECKING:
    from deepmnn.measure.evaluate import Answer
    from deepmnn.measure.problems import Problem

RIGHT, WRONG = Text("right", "bold green"), Text("wrong", "bold red")

NEXT = """\
next: deepmnn chat tiny-r1
      deepmnn eval      (the whole held-out set)
      deepmnn bench     (speed, and this machine's limits)
      deepmnn chat deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B   (downloads and converts it)"""


def demo(
    quant: Annotated[str, Option(help="fp32, bf16, w8 or w4.")] = "w8",
    problems: Annotated[int, Option(min=1, help="How many questions.")] = 6,
    seed: Annotated[int, Option(min=0, help="Which questions.")] = 0,
    *,
    load: Annotated[LoadOptions, {"quant": None}],
) -> None:
    """Convert the bundled tiny-r1 and let it solve problems it was not trained on."""
    from deepmnn.conversion.bundled import HELD_OUT
    from deepmnn.measure.evaluate import Answer, ask, judge_answer
    from deepmnn.measure.problems import read_problems
    from deepmnn.text.sampling_params import SamplingParams

    asked = pick(read_problems(HELD_OUT), problems, seed)
    model = options.open_model(options.bundled(), replace(load, quant=quant))
    facts = (
        f": DeepSeek-V3 architecture, {quant}, {file_size(model.artifact.weights_nbytes)}; "
        "these problems were held out of its training"
    )
    out.print(Text.assemble(("tiny-r1", "bold"), facts), soft_wrap=True)
    answers = []
    for problem in asked:
        out.print(f"\n> {problem.question}", style="bold cyan", soft_wrap=True)
        completion = show(model.stream(ask(model, problem.question), SamplingParams()))
        answer = Answer(problem, completion, judge_answer(problem, completion))
        known = f", it is {problem.answers[0]}"
        out.print(RIGHT if answer.correct else Text.assemble(WRONG, known))
        answers.append(answer)
    _print_summary(answers)
    out.print()
    out.say(f"The converted model is in {model.path}")
    out.print(NEXT, style="dim", soft_wrap=True)


def _print_summary(answers: list[Answer]) -> None:
    made = table("", "problem", "tokens", "tok/s", "")
    for answer in answers:
        tokens, speed = answer.completion.completion_tokens, answer.completion.tokens_per_second
        mark = RIGHT if answer.correct else WRONG
        made.add_row(answer.problem.question, str(tokens), f"{speed:.0f}", mark)
    out.print()
    out.print(made)
    out.print(f"{sum(answer.correct for answer in answers)} of {len(answers)} right")


def pick(problems: list[Problem], count: int, seed: int) -> list[Problem]:
    """`count` problems, the kinds in turn; the same for the same seed."""
    shuffled = list(problems)
    random.Random(seed).shuffle(shuffled)
    seen: dict[str, int] = {}
    turns = []
    for problem in shuffled:
        turns.append(seen.get(problem.kind, 0))
        seen[problem.kind] = turns[-1] + 1
    order = sorted(range(len(shuffled)), key=turns.__getitem__)
    return [shuffled[i] for i in order[:count]]
