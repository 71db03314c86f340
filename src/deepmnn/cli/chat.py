"""deepmnn chat: a conversation."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from deepmnn.api.options import LoadOptions
from deepmnn.cli import commands, options
from deepmnn.cli.answer import show, show_stats
from deepmnn.cli.console import err, file_size
from deepmnn.cli.conversation import Conversation, Turn
from deepmnn.cli.prompt import answering, interrupts_ignored, is_interactive, open_prompt
from deepmnn.errors import ContextLengthError, DeepmnnError, in_shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from deepmnn.api.llm import LLM
    from deepmnn.cli.prompt import Prompt
    from deepmnn.engine.completion import Completion
    from deepmnn.text.sampling_params import SamplingParams

_FULL = "/reset starts over, /save FILE keeps the conversation."


def chat(
    path: options.ModelPath,
    system: Annotated[str | None, Option(help="A system message.")] = None,
    reasoning: Annotated[
        bool, Option("--reasoning/--no-reasoning", help="Show what stands between <think> tags.")
    ] = True,
    history: Annotated[
        bool,
        Option("--history/--no-history", help="Keep what you type for the next chat (Up, Ctrl-R)."),
    ] = True,
    *,
    sampling: options.Sampling,
    load: LoadOptions,
) -> None:
    """Talk with the model; /help lists the commands.

    Without a terminal, each line of stdin is a question, and stdout has the answers only.
    """
    model = options.open_model(path, load, "chat template")
    talk = _Talk(model, sampling.params(model), reasoning)
    prompt, conversation = open_prompt(history=history), Conversation(system)
    if is_interactive():
        _print_header(model, path, talk.params)
        with interrupts_ignored():
            _converse(talk, conversation, prompt)
    elif not _converse(talk, conversation, prompt):
        raise Exit(1)


def _converse(talk: _Talk, conversation: Conversation, prompt: Prompt) -> bool:
    """Until the last question; whether all could be asked, and all commands done."""
    failed = False
    while (line := prompt.read()) is not None:
        try:
            if line.startswith("/"):
                if not commands.run(line, conversation):
                    break
            elif question := commands.unquoted(line):
                talk.ask(conversation, question)
        except (DeepmnnError, OSError) as error:
            err.say(
                f"error: {error.shell if isinstance(error, DeepmnnError) else error}", "bold red"
            )
            failed = True
        if is_interactive():
            err.print()
    return not failed


class _Talk:
    """Asks a model, and prints what it says."""

    def __init__(self, model: LLM, params: SamplingParams, reasoning: bool) -> None:
        self.model, self.params, self.reasoning = model, params, reasoning

    def ask(self, conversation: Conversation, question: str) -> None:
        """Adds a turn, unless the question cannot be asked. Raises DeepmnnError, then.

        Ctrl-C stops the answer; what there is of it stays in the conversation.
        """
        from deepmnn.engine.completion import Completion

        completion = Completion()
        try:
            with answering(), closing(self._stream(conversation, question)) as chunks:
                show(chunks, completion, reasoning=self.reasoning)
        except KeyboardInterrupt:
            self._stopped(conversation, question, completion)
            return
        conversation.turns.append(Turn(question, completion.text, completion.reasoning))
        show_stats(completion)
        used = completion.prompt_tokens + completion.completion_tokens
        if completion.finish_reason == "length" and used >= self.model.engine.context_length:
            err.say(f"The context of {used} tokens is full. {_FULL}", "yellow")

    def _stream(self, conversation: Conversation, question: str) -> Any:
        try:
            return self.model.stream(conversation.asking(question), self.params)
        except ContextLengthError as error:
            hint = f"{in_shell(error.hint)} {_FULL}"
            raise ContextLengthError(error.found, error.expected, hint) from None

    def _stopped(self, conversation: Conversation, question: str, completion: Completion) -> None:
        if completion.text or completion.reasoning:
            conversation.turns.append(Turn(question, completion.text, completion.reasoning))
            err.say("stopped; the question and this part of the answer are kept", "dim")
        else:
            err.say("stopped before the answer began; the question is forgotten", "dim")


def _print_header(model: LLM, name: str, params: SamplingParams) -> None:
    """The model and how it is run, before the first question."""
    manifest = model.artifact.manifest
    core = getattr(model.backend, "model", model.backend)
    run = [type(model.backend).__name__.removesuffix("Backend").lower()]
    run += [str(core.isa)] if hasattr(core, "isa") else []
    run += [f"{core.threads} threads"] if hasattr(core, "threads") else []
    size = file_size(model.artifact.weights_nbytes)
    err.say(f"{Path(name).name}: {manifest['model_type']}, {manifest['quant']}, {size}", "bold")
    err.say(
        f"context {model.engine.context_length} tokens | {', '.join(_sampling(params))} | "
        f"{', '.join(run)}",
        "dim",
    )
    disk = model.engine.manager.disk
    if disk is not None:
        err.say(f"{disk.line()}; --kv-disk 0 turns that off", "dim")
    err.say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves", "dim")
    err.print()


def _sampling(params: SamplingParams) -> Iterator[str]:
    """What differs from plain sampling, in a few words."""
    if params.temperature == 0:
        yield "greedy"
    else:
        yield f"temperature {params.temperature:g}"
        plain = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        for name, off in plain.items():
            if getattr(params, name) != off:
                yield f"{name.replace('_', '-')} {getattr(params, name):g}"
    if params.has_penalty:
        yield "penalties"
    if params.max_tokens is not None:
        yield f"at most {params.max_tokens} tokens"
