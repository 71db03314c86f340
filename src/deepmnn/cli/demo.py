"""deepmnn demo: a trained model answers questions it has never seen, offline, at once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated

from typer import Option

from deepmnn.cli import options
from deepmnn.cli.answer import show
from deepmnn.cli.console import file_size, out, table

if TYPE_CHECKING:
    from deepmnn.evaluate import Problem


def demo(
    quant: Annotated[str, Option(help="fp32, bf16, w8 or w4.")] = "w8",
    problems: Annotated[int, Option(min=1, help="How many questions.")] = 6,
    seed: Annotated[int, Option(min=0, help="Which questions.")] = 0,
    threads: options.Threads = None,
) -> None:
    """Convert the bundled tiny-r1 and let it solve problems it was not trained on."""
    import deepmnn
    from deepmnn.bundled import HELD_OUT
    from deepmnn.engine.sampler import SamplingParams
    from deepmnn.evaluate import ask, is_correct, read_problems

    asked = pick(read_problems(HELD_OUT), problems, seed)
    path = options.bundled(quant)
    model = deepmnn.load(path, threads=threads)
    out.print(
        f"[bold]tiny-r1[/]: DeepSeek-V3 architecture, {quant}, "
        f"{file_size(model.artifact.weights_nbytes)}; these problems were held out of its training",
        soft_wrap=True,
    )
    answers = []
    for problem in asked:
        out.print(f"\n[bold cyan]> {problem.question}[/]", soft_wrap=True)
        completion = show(model.stream(ask(model, problem.question), SamplingParams()))
        right = is_correct(completion.text, problem.answer)
        out.print(
            "[bold green]right[/]" if right else f"[bold red]wrong[/], it is {problem.answer}"
        )
        answers.append((problem, completion, right))
    made = table("", "problem", "tokens", "tok/s", "")
    for problem, completion, right in answers:
        speed = f"{completion.tokens_per_second:.0f}"
        mark = "[green]right[/]" if right else "[red]wrong[/]"
        made.add_row(problem.question, str(completion.completion_tokens), speed, mark)
    out.print()
    out.print(made)
    score = sum(right for *_, right in answers)
    out.print(f"{score} of {len(answers)} right; the converted model is in {path}", soft_wrap=True)
    out.print(
        f"next: deepmnn chat {path}\n"
        "      deepmnn eval      (the whole held-out set)\n"
        "      deepmnn bench     (speed, beside this machine's limits)\n"
        "      deepmnn pull deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        style="dim",
        soft_wrap=True,
    )


def pick(problems: list[Problem], count: int, seed: int) -> list[Problem]:
    """A reproducible choice that takes the kinds in turn."""
    shuffled = list(problems)
    random.Random(seed).shuffle(shuffled)
    seen: dict[str, int] = {}
    turns = []
    for problem in shuffled:
        turns.append(seen.get(problem.kind, 0))
        seen[problem.kind] = turns[-1] + 1
    order = sorted(range(len(shuffled)), key=turns.__getitem__)
    return [shuffled[i] for i in order[:count]]
