"""deepmnn chat: a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import options
from deepmnn.cli.answer import show, show_stats
from deepmnn.cli.console import err

if TYPE_CHECKING:
    from deepmnn.api.llm import LLM
    from deepmnn.text.sampling_params import SamplingParams

HELP = "/reset starts over, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def chat(
    path: options.ModelPath,
    system: Annotated[str | None, Option(help="A system message.")] = None,
    *,
    sampling: options.Sampling,
    load: LoadOptions,
) -> None:
    """Talk with the model. Earlier turns stay in the KV cache."""
    model = options.open_model(path, load)
    params = sampling.params(model)
    opening = [{"role": "system", "content": system}] if system else []
    model.tokenizer  # noqa: B018  # a chat needs one: say so before the first question
    err.print(f"[dim]{HELP}[/]")
    messages = list(opening)
    while (question := _read()) is not None:
        if question == "/reset":
            messages = list(opening)
        elif question:
            messages = _turn(model, messages, question, params)


def _read() -> str | None:
    """The next line; None at its end. Ctrl-C here leaves with 130."""
    try:
        line = input("> ").strip()
    except (EOFError, RuntimeError):  # RuntimeError: the process was given no stdin at all
        return None
    return None if line in ("/exit", "/quit") else line


def _turn(
    model: LLM, messages: list[dict[str, str]], question: str, params: SamplingParams
) -> list[dict[str, str]]:
    """Asks; the conversation with question and answer, or as it was when Ctrl-C stopped it."""
    from deepmnn.errors import ContextLengthError

    asked = [*messages, {"role": "user", "content": question}]
    try:
        completion = show(model.stream(asked, params))
    except KeyboardInterrupt:
        err.print("\n[dim]stopped; the question is forgotten[/]")
        return messages
    except ContextLengthError as error:
        err.print(f"{error} Type /reset to start over.", style="bold red", markup=False)
        return messages
    show_stats(completion)
    return [*asked, {"role": "assistant", "content": completion.text}]
