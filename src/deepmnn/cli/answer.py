"""Prints an answer as it grows: the reasoning dimmed, then the text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.segment import Segment, Segments

from deepmnn.cli.console import err, out
from deepmnn.engine.completion import Chunk, Completion

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= dict.fromkeys(range(0x7F, 0xA0), "\ufffd")
"""A model must not control the terminal: its control characters are shown as symbols."""


def show(chunks: Iterable[Chunk]) -> Completion:
    """Prints the chunks of one answer to stdout and adds them up."""
    completion = Completion()
    for chunk in chunks:
        if chunk.reasoning:
            _write(chunk.reasoning, "dim")
        if chunk.text:
            gap = "\n\n" if completion.reasoning and not completion.text else ""
            _write(gap + chunk.text)
        completion.add(chunk)
    out.print()
    return completion


def _write(text: str, style: str = "") -> None:
    """Prints text as it is, tabs and all (rich's Text would expand them)."""
    shown = text.translate(_CONTROLS) if out.is_terminal else text
    out.print(Segments([Segment(shown, out.get_style(style))]), end="", soft_wrap=True)


def show_stats(completion: Completion) -> None:
    """One dim line on stderr: tokens, speed and why it ended."""
    cached = f" ({completion.cached_tokens} cached)" if completion.cached_tokens else ""
    err.print(
        f"[dim]prompt {completion.prompt_tokens} tokens{cached}, first token after "
        f"{completion.prefill_seconds:.2f} s | answer {completion.completion_tokens} tokens, "
        f"{completion.tokens_per_second:.1f} tok/s | {completion.finish_reason}[/]",
        soft_wrap=True,
    )
