"""The problems that `deepmnn eval` asks, and how they were answered."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import out, print_json, table, visible
from deepmnn.cli.progress import count_progress
from deepmnn.text.sampling_params import SamplingParams

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.measure.evaluate import Answer, Report


def ask(
    path: str | None,
    data: Path | None,
    match: str,
    output: Path | None,
    limit: int | None,
    sampling: options.Sampling,
    as_json: bool,
    load: LoadOptions,
) -> None:
    """Asks problems and prints how many are answered right."""
    from deepmnn.conversion.bundled import HELD_OUT
    from deepmnn.measure.answer_file import AnswerFile
    from deepmnn.measure.evaluate import MAX_TOKENS
    from deepmnn.measure.evaluate import evaluate as run
    from deepmnn.measure.problems import check_match, read_problems

    problems = read_problems(data or HELD_OUT, check_match(match, "--match"))[:limit]
    params = SamplingParams(**{"max_tokens": MAX_TOKENS, **sampling.given})
    model = options.open_model(path or options.bundled(), load, "tokenizer")
    with ExitStack() as stack:
        file = stack.enter_context(AnswerFile(output)) if output else None
        progress = stack.enter_context(count_progress("asking"))
        done = count(1)
        progress(0, len(problems), "")

        def answered(answer: Answer) -> None:
            if file:
                file.add(answer)
            progress(next(done), len(problems), "")

        report = run(model, problems, params, answered)
    if as_json:
        print_json(_described(report), indent=2)
    else:
        _print_report(report, model, params.max_tokens or MAX_TOKENS)


def _print_report(report: Report, model: LLM, max_tokens: int) -> None:
    from deepmnn.measure.evaluate import Verdict

    if len(report.by_kind) > 1:
        kinds = table("", "kind", "right", "wrong", "cut off", "of", "exact match")
        for kind, part in report.by_kind.items():
            shown = [part.counts[v] for v in (Verdict.RIGHT, Verdict.WRONG, Verdict.CUT_OFF)]
            figures = [str(number) for number in (*shown, len(part.answers))]
            name = visible(kind, one_line=True) or "-"
            kinds.add_row(name, *figures, f"{part.score:.1%}")
        out.print(kinds)
    speed = report.completion_tokens / report.seconds if report.seconds else 0.0
    line = Text.assemble(
        "exact match ",
        (f"{report.score:.1%}", "bold"),
        f" ({report.correct} of {len(report.answers)}), {report.completion_tokens} tokens in "
        f"{report.seconds:.1f} s ({speed:.0f} tok/s)",
    )
    out.print(line, soft_wrap=True)
    others = [f"{n} {v}" for v, n in report.counts.items() if n and v is not Verdict.RIGHT]
    if others:
        out.say(f"the others: {', '.join(others)}")
    for advice in _advice(report, model, max_tokens):
        out.say(advice, "yellow")


def _advice(report: Report, model: LLM, max_tokens: int) -> list[str]:
    """What to do about answers that could not be judged."""
    from deepmnn.measure.evaluate import Verdict

    cut = [a.completion for a in report.answers if a.verdict is Verdict.CUT_OFF]
    long = sum(completion.completion_tokens >= max_tokens for completion in cut)
    said, context = [], model.engine.context_length
    if long:
        said.append(f"{long} cut off after {max_tokens} tokens: set a larger --max-tokens")
    if len(cut) > long:
        more = "" if context == model.context_length else ": set a larger --cache-tokens"
        said.append(f"{len(cut) - long} cut off where the context of {context} tokens ends{more}")
    slow = report.counts[Verdict.UNJUDGED]
    if slow:
        said.append(f"{slow} not judged: their regular expression takes too long; simplify it")
    return said


def _described(report: Report) -> dict[str, Any]:
    def counts(part: Report) -> dict[str, Any]:
        numbers = {str(v).replace(" ", "_"): n for v, n in part.counts.items()}
        return {"asked": len(part.answers), **numbers, "exact_match": part.score}

    return {
        **counts(report),
        "kinds": {kind: counts(part) for kind, part in report.by_kind.items()},
        "completion_tokens": report.completion_tokens,
        "seconds": report.seconds,
    }
