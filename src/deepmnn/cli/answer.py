"""Prints an answer as it grows: the reasoning dimmed, then the text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from deepmnn.cli.console import err, out
from deepmnn.engine.completion import Chunk, Completion


def show(chunks: Iterable[Chunk]) -> Completion:
    """Prints the chunks of one answer to stdout and adds them up."""
    completion = Completion()
    for chunk in chunks:
        if chunk.reasoning:
            out.print(Text(chunk.reasoning, style="dim"), end="", soft_wrap=True)
        if chunk.text:
            gap = "\n\n" if completion.reasoning and not completion.text else ""
            out.print(Text(gap + chunk.text), end="", soft_wrap=True)
        completion.add(chunk)
    out.print()
    return completion


def show_stats(completion: Completion) -> None:
    """One dim line on stderr: tokens, speed and why it ended."""
    cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
    err.print(
        f"[dim]prompt {completion.prompt_tokens} tokens{cached}, first token after "
        f"{completion.prefill_seconds:.2f} s | answer {completion.completion_tokens} tokens, "
        f"{completion.tokens_per_second:.1f} tok/s | {completion.finish_reason}[/]",
        soft_wrap=True,
    )
