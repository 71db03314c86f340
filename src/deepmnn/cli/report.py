"""deepmnn report: a page about a model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.console import file_size, out
from deepmnn.cli.progress import byte_progress, count_progress, status
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.conversion.report.facts import WeightFacts
    from deepmnn.inspect.report.findings import Findings, Judged
    from deepmnn.inspect.report.subject import Opened


def report(
    name: options.ModelPath,
    page: Annotated[Path, Argument(metavar="OUT.html", help="The page to write.")],
    reference: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            help="The checkpoint: errors of its weights, and divergence from it in float32.",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        Option(
            help="A text, or JSON Lines of text or messages, for the perplexity; repeatable. "
            "With a reference: default as for eval."
        ),
    ] = None,
    no_speed: Annotated[bool, Option("--no-speed", help="Leave speed out.")] = False,
    overwrite: Annotated[bool, Option(help="Replace an earlier page.")] = False,
    *,
    load: Annotated[LoadOptions, {"max_sequences": None}],
) -> None:
    """Write a page about a model: graph and passes, sizes, errors, accuracy, speed, memory."""
    from deepmnn.inspect.page_file import check_page, write_page
    from deepmnn.inspect.report.findings import Findings
    from deepmnn.inspect.report.measured import speed
    from deepmnn.inspect.report.memory import machine_nbytes
    from deepmnn.inspect.report.page import page as made
    from deepmnn.inspect.report.recorded import recorded

    check_page(page, overwrite)
    model = _loaded(name, load, needed=bool(text or reference), wanted=not no_speed)
    with status("reading the graph"):
        opened = _opened(name, model, load)
    artifact = opened.artifact
    found = Findings(recorded=recorded(artifact) if artifact else None, memory=machine_nbytes())
    weights, origin = _errors(name, opened, reference, found)
    found = replace(found, errors=weights, errors_from=origin)
    if model is not None and (text or reference):
        found = replace(found, judged=_judged(model, text or [], reference, load))
    if model is not None and not no_speed:
        with status("measuring") as progress:
            found = replace(found, speeds=speed(model, progress))
    with status("drawing"):
        html = made(_label(name), opened.subject, found)
    write_page(page, html, overwrite)
    out.say(f"{page}", "bold green")
    out.say(f"  size   {file_size(len(html.encode()))}")


def _loaded(name: str, load: LoadOptions, needed: bool, wanted: bool) -> LLM | None:
    """The model, ready to run; None where it need not run, or has no weights.

    Raises RequestError where it must run and cannot.
    """
    from deepmnn.conversion.kept import is_checkpoint
    from deepmnn.exporters.mnn.folder import is_exported
    from deepmnn.inspect.report.measured import CACHE_TOKENS
    from deepmnn.source.open import has_weights

    path, here = Path(name), os.path.lexists(name)
    if here and not is_exported(path) and is_checkpoint(path) and not has_weights(path):
        if needed:
            raise RequestError(f"{name} has no weights", "a model that runs, for a text to read")
        return None
    if not (needed or wanted):
        return None
    rows = load.cache_tokens or CACHE_TOKENS
    return options.open_model(name, replace(load, cache_tokens=rows))


def _opened(name: str, model: LLM | None, load: LoadOptions) -> Opened:
    from deepmnn.conversion.kept import described
    from deepmnn.inspect.report.subject import opened, planned
    from deepmnn.quant.recipe import DEFAULT

    if model is not None:
        found = opened(model.artifact)
        assert found is not None  # a loaded model is one or the other
        return found
    with options.preparing() as progress:
        path = described(name, progress)
    return opened(path) or planned(path, load.quant or DEFAULT)


def _errors(
    name: str, opened: Opened, reference: str | None, found: Findings
) -> tuple[tuple[WeightFacts, ...], str]:
    """What rounding did to the weights, and what they were compared with; nothing where the
    conversion has told, or nobody knows.
    """
    from deepmnn.conversion.kept import original
    from deepmnn.inspect.report.errors import measure
    from deepmnn.source.open import is_converted

    is_source = not (os.path.lexists(name) and is_converted(Path(name)))
    own = name if found.recorded is None and is_source else None
    checkpoint = reference or own
    if checkpoint is None or opened.artifact is None or opened.restored is None:
        return (), ""
    with (
        options.preparing() as progress,
        original(checkpoint, progress) as source,
        byte_progress("comparing weights") as shown,
    ):
        weights = measure(opened.artifact, opened.restored, source, shown)
    return weights, _label(checkpoint)


def _judged(model: LLM, files: list[Path], reference: str | None, load: LoadOptions) -> Judged:
    from deepmnn.cli.judged import BUILT_IN_PIECES, pieces_of, reference_of
    from deepmnn.inspect.report.findings import Judged
    from deepmnn.inspect.report.measured import random_pieces
    from deepmnn.measure.judge import judge
    from deepmnn.measure.predictions import predictions
    from deepmnn.measure.texts import DEFAULT_TOKENS, built_in_texts, read_texts

    texts = ", ".join(file.name for file in files) or "text that comes with Python"
    is_language = bool(files) or model.has_tokenizer
    if is_language:
        given = [read_texts(file) for file in files] or built_in_texts()
        pieces = pieces_of(model, given, None, None if files else BUILT_IN_PIECES)
    else:
        pieces, texts = random_pieces(model), "token ids at random"
    other = None
    if reference is not None:
        other = reference_of(reference, None, model, load, DEFAULT_TOKENS + 32)
    with count_progress("reading") as progress:
        judgement = judge(predictions(model), pieces, other, progress)
    return Judged(judgement, texts, _label(reference or ""), is_language)


def _label(name: str) -> str:
    """What a page calls a model: no page tells where it lies on somebody's disk."""
    return Path(name).name if os.path.lexists(name) else name
