"""deepmnn compare: where two models differ, and what rounding does not explain."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from deepmnn.cli import options
from deepmnn.cli.console import err, out
from deepmnn.cli.progress import count_progress, work_progress
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.backends.base import I32
    from deepmnn.graph.ir import Graph
    from deepmnn.inspect.sides.subject import Subject

MOST = 1 << 20
"""Tokens."""

REFERENCE, SHOWN = "The reference", "Output"

MOST_PARAMETERS = 10**9
"""Of a model whose layers' effects are measured unless it is said: it takes many runs."""


def compare(
    name: options.ModelPath,
    reference: Annotated[
        str | None,
        Argument(
            metavar="[REFERENCE]",
            help="What it is compared with, such as the checkpoint it was made of; default: for a "
            "converted model itself by numpy, for a checkpoint itself by PyTorch.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        Option(
            "--input",
            metavar="TEXT|FILE",
            help="A text, a file of text, JSON Lines, or token ids (.npy, .bin); default: built-in "
            "text, or ids at random for a model without a tokenizer.",
        ),
    ] = None,
    tokens: Annotated[
        int, Option(min=2, max=MOST, help="At most so many, in samples of 128.")
    ] = 512,
    backend: Annotated[
        str | None, Option(help="cpu, reference (numpy), mnn, or torch (a checkpoint).")
    ] = None,
    quant: Annotated[
        str | None, Option(help="How a checkpoint is converted: a recipe or a file of one.")
    ] = None,
    optimize_level: Annotated[
        int | None, Option(help="0 to 3; a converted model then runs in float32.")
    ] = None,
    without: Annotated[
        list[str] | None, Option(metavar="PASS", help="Leave a pass out; repeatable.")
    ] = None,
    isa: Annotated[str | None, Option(help="Instruction set of the engine.")] = None,
    threads: Annotated[int | None, Option(min=1, help="Of both models.")] = None,
    kv_dtype: Annotated[str, Option(help="KV cache: f32, bf16 or int8.")] = "f32",
    mla_form: Annotated[str, Option(help="Latent attention: absorbed, expanded or auto.")] = "auto",
    reference_backend: Annotated[
        str | None,
        Option(
            help="Default: torch for a checkpoint where it is installed, else reference; cpu for "
            "what is converted.",
            rich_help_panel=REFERENCE,
        ),
    ] = None,
    reference_optimize_level: Annotated[
        int | None, Option(help="0 to 3.", rich_help_panel=REFERENCE)
    ] = None,
    reference_isa: Annotated[
        str | None, Option(help="Instruction set of the engine.", rich_help_panel=REFERENCE)
    ] = None,
    reference_kv_dtype: Annotated[
        str, Option(help="KV cache: f32, bf16 or int8.", rich_help_panel=REFERENCE)
    ] = "f32",
    effects: Annotated[
        bool | None,
        Option(
            "--effects/--no-effects",
            help="What each layer does to the predictions; default: for models of less than 1e9 "
            "parameters.",
        ),
    ] = None,
    no_weights: Annotated[bool, Option("--no-weights", help="Leave the tensors out.")] = False,
    bisect: Annotated[
        bool,
        Option(
            "--bisect",
            help="Find the smallest set of passes, formats, kernels, ... that must be switched off "
            "for the logits' error to fall below --bound.",
        ),
    ] = False,
    bound: Annotated[
        float | None,
        Option(
            min=0,
            help="The first value with a larger relative error is named, default: 0.01; exit code "
            "1 where it is given and the logits' error is larger.",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    as_json_: Annotated[bool, Option("--json", help="Print JSON.", rich_help_panel=SHOWN)] = False,
    html: Annotated[
        Path | None,
        Option(metavar="OUT.html", help="Write a page with charts.", rich_help_panel=SHOWN),
    ] = None,
    overwrite: Annotated[
        bool, Option(help="Replace an earlier page.", rich_help_panel=SHOWN)
    ] = False,
) -> None:
    """Find where two models differ: values layer by layer, tensors, and effects on predictions.

    Exit code 1: there is a difference that rounding does not explain.
    """
    from deepmnn.cli.compared import as_json, print_comparison
    from deepmnn.inspect.compare.comparison import check_pair
    from deepmnn.inspect.compare.comparison import compare as run
    from deepmnn.inspect.compare.page import page
    from deepmnn.inspect.compare.summary import BOUND, is_past
    from deepmnn.inspect.page_file import check_page, write_page
    from deepmnn.inspect.sides.opened import opened
    from deepmnn.inspect.sides.options import SideOptions
    from deepmnn.quant.recipe_file import read_recipe

    if bisect and html is not None:
        raise typer.BadParameter("--html is given with --bisect, which writes no page")
    if html is not None:
        check_page(html, overwrite)
    ours = SideOptions(
        backend=backend,
        quant=None if quant is None else read_recipe(quant),
        optimize_level=optimize_level,
        disabled=frozenset(without or ()),
        threads=threads,
        isa=isa,
        mla_form=mla_form,
        kv_dtype=kv_dtype,
    )
    theirs = SideOptions(
        backend=reference_backend or _default_backend(name, reference),
        optimize_level=reference_optimize_level,
        threads=threads,
        isa=reference_isa,
        kv_dtype=reference_kv_dtype,
    )
    with ExitStack() as stack:
        preparing = stack.enter_context(options.preparing())
        model = stack.enter_context(opened(name, ours, preparing))
        other = stack.enter_context(opened(reference or name, theirs, preparing))
        naive = check_pair(model, other)
        samples = _samples(text, model, other, tokens)
        if bisect:
            _bisect(model, other, samples, BOUND if bound is None else bound, as_json_)
            return
        wanted = _wants_effects(naive) if effects is None else effects
        with work_progress("comparing") as progress:
            found = run(
                model,
                other,
                samples,
                weights=not no_weights,
                effects=wanted,
                sketches=html is not None,
                progress=progress,
            )
    limit = BOUND if bound is None else bound
    if html is not None:
        write_page(html, page(found, (_label(name), _label(reference or name)), limit), overwrite)
    if as_json_:
        as_json(found)
    else:
        print_comparison(found, (name, reference or name), limit)
        if html is not None:
            out.say(f"written: {html}", "dim")
    if found.findings or (bound is not None and is_past(found, bound)):
        raise typer.Exit(1)


def _bisect(
    model: Subject, other: Subject, samples: list[I32], bound: float, in_json: bool
) -> None:
    """Bisects instead of comparing. Exit code 1: the error is past the bound."""
    from deepmnn.cli.bisected import print_bisection
    from deepmnn.cli.compared import as_json
    from deepmnn.inspect.bisect.bisect import bisect

    with count_progress("bisecting") as progress:
        found = bisect(model, other, samples, bound, progress)
    if in_json:
        as_json(found)
    else:
        print_bisection(found)
    if not found.as_it_is.error <= bound:
        raise typer.Exit(1)


def _default_backend(name: str, reference: str | None) -> str | None:
    """The reference's: of a converted model itself numpy, else see `default_reference`.

    Raises RequestError for a folder for MNN alone.
    """
    from deepmnn.exporters.mnn.folder import is_exported
    from deepmnn.inspect.sides.opened import default_reference

    if reference is None and os.path.lexists(name) and is_exported(Path(name)):
        raise RequestError(
            f"{name} is a folder for MNN, and no reference is given",
            "a reference, for its weights are not read back",
            "Give the converted model or the checkpoint that it was made of.",
        )
    chosen = default_reference(reference or name).backend
    return "reference" if reference is None and chosen is None else chosen


def _samples(text: str | None, model: Subject, other: Subject, tokens: int) -> list[I32]:
    """Of the first of the two that has a tokenizer."""
    from deepmnn.inspect.samples import read_samples
    from deepmnn.models import read_config

    tokenizer = next((each.tokenizer for each in (model, other) if each.has_tokenizer), None)
    length = read_config(model.config).context_length
    return read_samples(text, tokenizer, model.vocab_size, length, tokens)


def _wants_effects(naive: Graph) -> bool:
    """Unless it is said: of models where it does not take long."""
    from deepmnn.graph.tensors import tensor_shapes

    few = sum(map(math.prod, tensor_shapes(naive).values())) < MOST_PARAMETERS
    if not few:
        err.say("the model is large: --effects measures what each layer does to the predictions")
    return few


def _label(name: str) -> str:
    """What a page calls a model: no page tells where it lies on somebody's disk."""
    return Path(os.path.abspath(name)).name if os.path.lexists(name) else name
