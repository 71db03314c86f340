"""deepmnn generate: one prompt, one answer."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.answer import show, show_stats


def generate(
    path: options.ModelPath,
    prompt: Annotated[str, Argument(help="What to ask.")],
    raw: Annotated[bool, Option("--raw", help="Continue the text; no chat template.")] = False,
    system: Annotated[str | None, Option(help="A system message.")] = None,
    *,
    sampling: options.Sampling,
    load: LoadOptions,
) -> None:
    """Answer one prompt; the reasoning is dimmed."""
    model = options.open_model(path, load)
    params = sampling.params(model)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    model.tokenizer  # noqa: B018  # printing an answer needs one: say so before any work
    show_stats(show(model.stream(prompt if raw else messages, params)))
