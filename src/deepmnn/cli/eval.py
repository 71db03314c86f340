"""deepmnn eval: right answers to problems, or perplexity and divergence on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.asked import ask
from deepmnn.cli.judged import judge

PROBLEMS, TEXTS = "Problems", "Texts"


def evaluate(
    path: options.OptionalModelPath = None,
    limit: Annotated[
        int | None, Option(min=1, help="Ask only the first N, or read N pieces of each text.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    data: Annotated[
        Path | None,
        Option(
            help="JSON Lines of question, answer; default: tiny-r1's held-out set.",
            rich_help_panel=PROBLEMS,
        ),
    ] = None,
    match: Annotated[
        str,
        Option(
            help="exact, contains, regex, number or choice; default: number or choice where the "
            "answer is one, else contains.",
            rich_help_panel=PROBLEMS,
        ),
    ] = "",
    output: Annotated[
        Path | None,
        Option(
            help="A new file of JSON Lines: every answer, as it comes.", rich_help_panel=PROBLEMS
        ),
    ] = None,
    perplexity: Annotated[
        bool,
        Option("--perplexity", help="Read texts instead of asking.", rich_help_panel=TEXTS),
    ] = False,
    text: Annotated[
        list[Path] | None,
        Option(
            help="A text, or JSON Lines of text or messages; repeatable. Default: English and "
            "Python of Python's own library.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="Compare with this model: a checkpoint (in float32), or a converted one.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    reference_backend: Annotated[
        str | None,
        Option(
            help="cpu, mnn, reference, or torch: PyTorch runs the checkpoint.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        Option(
            min=2,
            help="Of a piece, each read in a context of its own; default: 512.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    *,
    sampling: Annotated[
        options.Sampling,
        {
            "temperature": "0, the default, is greedy.",
            "max_tokens": "Longest answer in tokens; default: 1024.",
        },
    ],
    load: LoadOptions,
) -> None:
    """Score a model: its answers to problems, or what it expects of a text.

    With --text, --reference or --perplexity it reads a text, else it asks problems.
    """
    sampled = {f"--{name.replace('_', '-')}": True for name in sampling.given}
    asks = {"--data": data, "--match": match, "--output": output, **sampled}
    reads = {"--text": text, "--reference": reference, "--perplexity": perplexity}
    more = {"--reference-backend": reference_backend, "--tokens": tokens}
    if not any(reads.values()):
        _forbid(more, "a text that is read: add --perplexity, --text or --reference")
        ask(path, data, match, output, limit, sampling, as_json, load)
        return
    _forbid(asks, f"problems, and {' and '.join(f for f, v in reads.items() if v)} reads a text")
    if reference is None:
        _forbid({"--reference-backend": reference_backend}, "--reference")
    judge(path, text or [], limit, tokens, reference, reference_backend, as_json, load)


def _forbid(flags: dict[str, Any], needed: str) -> None:
    """Raises BadParameter for a flag that is given without what it belongs to."""
    for flag, value in flags.items():
        if value:
            raise BadParameter(f"{flag} belongs to {needed}")
