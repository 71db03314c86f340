"""Splits an R1-style answer into its reasoning and the rest."""

from __future__ import annotations

from deepmnn.text.stop import partial_match

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Text deltas in, (reasoning, text) deltas out.

    inside: the prompt has opened the tag already, as DeepSeek-R1's chat template does. Otherwise
    an answer reasons only if it begins with the tag. White space around the tags is dropped. None:
    all is text, tags and white space included.
    """

    def __init__(self, inside: bool | None) -> None:
        self._inside = bool(inside)
        self._undecided = inside is False
        self._after_tag = bool(inside)
        self._held = ""

    @property
    def inside(self) -> bool:
        """Whether the answer reasons at this point."""
        return self._inside

    def push(self, delta: str) -> tuple[str, str]:
        """The reasoning and the text that are certain by now."""
        self._held += delta
        if self._undecided:
            self._decide()
        if self._undecided:
            return "", ""
        reasoning = self._take_reasoning() if self._inside else ""
        return reasoning, "" if self._inside else self._take_text()

    def flush(self) -> tuple[str, str]:
        """What was held back, when the answer ends."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._inside else ("", held)

    def _decide(self) -> None:
        body = self._held.lstrip()
        if body.startswith(OPEN):
            self._inside = self._after_tag = True
            self._held = body.removeprefix(OPEN)
            self._undecided = False
        else:
            self._undecided = OPEN.startswith(body)

    def _skip_space(self) -> None:
        if self._after_tag:
            self._held = self._held.lstrip()
            self._after_tag = not self._held

    def _take_reasoning(self) -> str:
        self._skip_space()
        end = self._held.find(CLOSE)
        if end >= 0:
            reasoning = self._held[:end].rstrip()
            self._held = self._held[end + len(CLOSE) :]
            self._inside, self._after_tag = False, True
            return reasoning
        sure = len(self._held) - partial_match(self._held, (CLOSE,))
        reasoning = self._held[:sure].rstrip()
        self._held = self._held[len(reasoning) :]
        return reasoning

    def _take_text(self) -> str:
        self._skip_space()
        text, self._held = self._held, ""
        return text
