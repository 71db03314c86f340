"""deepmnn generate: one prompt, one answer."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.answer import show, show_stats
from deepmnn.cli.console import err, print_json
from deepmnn.errors import RequestError

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.engine.completion import Completion

MAX_BYTES = 16 << 20
"""No prompt of a file is longer."""


def generate(
    path: options.ModelPath,
    prompt: Annotated[
        str | None, Argument(help="What to ask; - or nothing: what comes from standard input.")
    ] = None,
    file: Annotated[Path | None, Option(help="Read the prompt from a file.")] = None,
    raw: Annotated[
        bool, Option("--raw", help="Continue the text to the letter; no chat template.")
    ] = False,
    system: Annotated[str | None, Option(help="A system message.")] = None,
    reasoning: Annotated[
        bool,
        Option(
            "--reasoning/--no-reasoning",
            help="Print what stands between <think> tags. Hidden, it is generated nevertheless.",
        ),
    ] = True,
    as_json: Annotated[
        bool, Option("--json", help="Print a JSON object; with --n, a list of them.")
    ] = False,
    count: Annotated[int, Option("--n", min=1, help="How many answers.")] = 1,
    likely: Annotated[
        int | None,
        Option(
            "--logprobs",
            min=0,
            help="With --json: log probabilities of each token and of the N likeliest ones.",
        ),
    ] = None,
    *,
    sampling: options.Sampling,
    load: LoadOptions,
) -> None:
    """Answer one prompt; the reasoning is dimmed.

    The answer goes to standard output, everything else to standard error.
    """
    if raw and system:
        raise BadParameter("--raw takes no chat template, and --system needs one")
    if likely is not None and not as_json:
        raise BadParameter("--logprobs is given without --json")
    text = _read(prompt, file)
    model = options.open_model(path, load, "tokenizer" if raw else "chat template")
    params = replace(sampling.params(model), n=count, logprobs=likely)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text.rstrip("\r\n")})
    asked = text if raw else messages
    if as_json:
        made: Any = model.generate(asked, params)
        answers = [_described(model, each, reasoning) for each in (made if count > 1 else [made])]
        print_json(answers if count > 1 else answers[0])
    elif count == 1:
        show_stats(show(model.stream(asked, params), reasoning=reasoning))
    else:  # they come at the same time: one after the other
        for chunk in sorted(model.stream(asked, params, whole=True), key=lambda c: c.choice):
            err.say(f"answer {chunk.choice + 1} of {count}", "bold")
            show_stats(show([chunk], reasoning=reasoning))


def _read(prompt: str | None, file: Path | None) -> str:
    """The prompt from wherever it is. Raises RequestError."""
    if file is not None:
        if prompt is not None:
            raise BadParameter("a prompt and --file are given, expected one of them")
        try:
            with file.open("rb") as opened:
                return _decoded(opened, str(file))
        except OSError as error:
            raise RequestError(
                f"{file} cannot be read: {error.strerror}", "a text file with the prompt"
            ) from None
    if prompt not in (None, "-"):
        return str(prompt)
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise BadParameter("there is no prompt: give one, name one with --file, or pipe one in")
    return _decoded(sys.stdin.buffer, "standard input")


def _decoded(opened: IO[bytes], name: str) -> str:
    """A bounded text in UTF-8. Raises RequestError."""
    data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise RequestError(f"{name} is larger than {MAX_BYTES} bytes", "a prompt")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8: {error}", "a text in UTF-8") from None
    if not text.strip():
        raise RequestError(f"{name} is empty", "a prompt")
    return text


def _described(model: LLM, completion: Completion, reasoning: bool) -> dict[str, Any]:
    """All that is known of an answer, as JSON has it."""
    fields = asdict(completion)
    if not reasoning:
        del fields["reasoning"]
    del fields["logprobs"]
    if completion.logprobs:
        fields["logprobs"] = [
            _token(model, each.id, each.logprob)
            | {"top": [_token(model, *likely) for likely in each.top.items()]}
            for each in completion.logprobs
        ]
    return fields


def _token(model: LLM, number: int, logprob: float) -> dict[str, Any]:
    text = model.tokenizer.decode([number], skip_special_tokens=False)
    return {"id": number, "text": text, "logprob": logprob}
