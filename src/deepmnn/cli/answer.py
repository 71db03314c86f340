"""Prints an answer as it grows: the reasoning dimmed, then the text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.segment import Segment, Segments

from deepmnn.cli.console import err, out, visible
from deepmnn.cli.wrap import Wrapper

if TYPE_CHECKING:
    from deepmnn.engine.completion import Chunk, Completion


def show(
    chunks: Iterable[Chunk], completion: Completion | None = None, *, reasoning: bool = True
) -> Completion:
    """Prints the chunks of one answer to stdout and adds them up.

    completion: what they are added to; who passes one has what came before an interrupt.
    reasoning: print it, too.
    """
    from deepmnn.engine.completion import Completion

    completion = Completion() if completion is None else completion
    writer = _Writer()
    try:
        for chunk in chunks:
            if chunk.reasoning and reasoning:
                writer.write(chunk.reasoning, "dim")
            elif chunk.reasoning and not completion.reasoning and err.is_terminal:
                err.say("thinking …", "dim")
            if chunk.text:
                thought = bool(completion.reasoning or chunk.reasoning)
                gap = "\n\n" if reasoning and thought and not completion.text else ""
                writer.write(gap + chunk.text)
            completion.add(chunk)
    finally:
        writer.end()
    return completion


class _Writer:
    """Writes one answer: wrapped on a terminal, to the letter anywhere else."""

    def __init__(self) -> None:
        self._wrapper = Wrapper(lambda: out.width)
        self._style = ""

    def write(self, text: str, style: str = "") -> None:
        if not out.is_terminal:
            out.write(text)
            return
        if style != self._style:
            self._print(self._wrapper.flush())
            self._style = style
        self._print(self._wrapper.feed(visible(text)))

    def end(self) -> None:
        if out.is_terminal:
            self._print(self._wrapper.flush() + "\n")
        else:
            out.write("\n")

    def _print(self, text: str) -> None:
        """Prints text as it is, tabs and all (rich's Text would expand them)."""
        segment = Segment(text, out.get_style(self._style))
        out.print(Segments([segment]), end="", soft_wrap=True)


def show_stats(completion: Completion) -> None:
    """One dim line on stderr: tokens, speed and why it ended."""
    cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
    guessed = ""
    if completion.drafted_tokens:
        guessed = f" ({completion.accepted_tokens} of {completion.drafted_tokens} guesses right)"
    err.say(
        f"prompt {completion.prompt_tokens} tokens{cached}, "
        f"{completion.prefill_seconds:.2f} s | answer {completion.completion_tokens} tokens, "
        f"{completion.tokens_per_second:.1f} tok/s{guessed} | {completion.finish_reason}",
        "dim",
    )
