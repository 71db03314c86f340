"""The texts that `deepmnn eval` reads, and what the model expects of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepmnn.api.options import BACKENDS, LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import out, print_json, table
from deepmnn.cli.progress import count_progress
from deepmnn.errors import RequestError, argument

if TYPE_CHECKING:
    from rich.table import Table

    from deepmnn.api.llm import LLM
    from deepmnn.measure.judge import Judgement, Perplexity
    from deepmnn.measure.predictions import Predict
    from deepmnn.measure.texts import Text
    from deepmnn.quant.divergence import Divergence

TORCH = "torch"
"""The reference's backend that is none of deepmnn's."""

BUILT_IN_PIECES = 4
"""Of each text that is built in, unless --limit says otherwise."""


def judge(
    path: str | None,
    files: list[Path],
    limit: int | None,
    tokens: int | None,
    reference: str | None,
    backend: str | None,
    as_json: bool,
    load: LoadOptions,
) -> None:
    """Reads texts, prints perplexity and, with a reference, divergence."""
    from deepmnn.measure.judge import judge as run
    from deepmnn.measure.predictions import predictions
    from deepmnn.measure.texts import DEFAULT_TOKENS, built_in_texts, read_texts

    given = [read_texts(file) for file in files] or built_in_texts()
    rows = (tokens or DEFAULT_TOKENS) + 32
    wanted = replace(load, cache_tokens=load.cache_tokens or rows)
    model = options.open_model(path or options.bundled(), wanted, "tokenizer")
    most = limit or (None if files else BUILT_IN_PIECES)
    pieces = pieces_of(model, given, tokens, most)
    other = None if reference is None else reference_of(reference, backend, model, load, rows)
    with count_progress("reading") as progress:
        judgement = run(predictions(model), pieces, other, progress)
    if as_json:
        ratio = {} if other is None else {"perplexity_ratio": judgement.perplexity_ratio}
        print_json({**asdict(judgement), **ratio}, indent=2)
    else:
        names = [str(file) for file in files] or ["built-in text"]
        _print_judgement(judgement, names, len(pieces[0]))


def pieces_of(
    model: LLM, given: Sequence[Sequence[Text]], tokens: int | None, most: int | None
) -> list[list[int]]:
    """Of all texts. Raises RequestError where there are none."""
    from deepmnn.measure.texts import DEFAULT_TOKENS, cut

    size = tokens or min(DEFAULT_TOKENS, model.context_length)
    if size > model.context_length:
        raise RequestError(
            argument("tokens", f" is {size}"),
            f"at most the model's context, {model.context_length}",
        )
    pieces = [piece for texts in given for piece in cut(model.tokenizer, texts, size, most)]
    if not pieces:
        raise RequestError("the text has no piece of two tokens", "a longer text")
    return pieces


def reference_of(
    name: str, backend: str | None, model: LLM, load: LoadOptions, rows: int
) -> Predict:
    """Opens it. Raises RequestError when it is no model of the same tokens."""
    from deepmnn.measure.predictions import predictions
    from deepmnn.measure.reference import check_comparable, reference_options

    if backend not in (None, *BACKENDS, TORCH):
        known = " or ".join(map(repr, (*BACKENDS, TORCH)))
        raise RequestError(f"--reference-backend is {backend!r:.40}", known)
    if backend == TORCH:
        from deepmnn.measure.torch_model import TorchModel

        made = TorchModel(name, load.threads)
        check_comparable(model, made)
        return made.predict
    other = options.open_model(name, reference_options(name, backend, load.threads, rows))
    check_comparable(model, other)
    return predictions(other)


def _print_judgement(judgement: Judgement, names: list[str], longest: int) -> None:
    """names: of the texts. longest: tokens of the longest piece."""
    out.say(
        f"{judgement.tokens:,} tokens of {', '.join(names)}: {judgement.pieces} pieces of at most "
        f"{longest}, each in a context of its own"
    )
    made = table("", "", "perplexity", "±", "loss, nats", "±")
    _add(made, "model", judgement.model)
    if judgement.reference is not None:
        _add(made, "reference", judgement.reference)
    change, error = judgement.loss_change, judgement.loss_change_error
    if change is not None and error is not None:
        ratio = judgement.perplexity_ratio or 0.0
        ends = (f"× {ratio:.4f}", f"{ratio * error:.4f}", f"{change:+.4f}", f"{error:.4f}")
        made.add_row("change", *ends)
    out.print(made)
    if judgement.divergence is not None:
        _print_divergence(judgement.divergence)


def _add(made: Table, name: str, found: Perplexity) -> None:
    figures = (found.perplexity, found.perplexity_error, found.loss, found.loss_error)
    made.add_row(name, *(f"{each:,.0f}" if each >= 1000 else f"{each:.3f}" for each in figures))


def _print_divergence(found: Divergence) -> None:
    made = table(
        "KL divergence from the reference, nats", "mean", "±", "median", "90 %", "99 %", "largest"
    )
    figures = (
        found.mean,
        found.mean_error,
        found.median,
        found.percentile_90,
        found.percentile_99,
        found.largest,
    )
    made.add_row(*(f"{figure:#.3g}" for figure in figures))
    out.print(made)
    out.say(f"same first choice {found.same_first_choice:.1%}")
