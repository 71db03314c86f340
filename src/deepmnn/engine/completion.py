"""What generation hands back: chunks as they come, and the whole answer."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chunk:
    """What one step added to one answer.

    Attributes:
        index: which prompt of the batch this answers.
        text, reasoning: new text; what stands between <think> tags is reasoning.
        ids: new token ids.
        finish_reason: None until the last chunk, then "stop" or "length"; "cancelled" when whoever
            asked has cancelled the request.
        prompt_tokens: length of the prompt; cached_tokens of them were already in the KV cache.
        completion_tokens: tokens generated so far.
        prefill_seconds: from the request to the first token.
        decode_seconds: from the first token to this one.
    """

    index: int
    text: str
    reasoning: str
    ids: list[int]
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Decode speed so far; 0 until the second token."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps and self.decode_seconds else 0.0


@dataclass
class Completion:
    """A whole answer; the attributes are those of Chunk, added up."""

    text: str = ""
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens_per_second: float = 0.0

    def add(self, chunk: Chunk) -> None:
        """Appends a chunk."""
        self.text += chunk.text
        self.reasoning += chunk.reasoning
        self.ids += chunk.ids
        self.finish_reason = chunk.finish_reason
        self.prompt_tokens = chunk.prompt_tokens
        self.cached_tokens = chunk.cached_tokens
        self.completion_tokens = chunk.completion_tokens
        self.prefill_seconds = chunk.prefill_seconds
        self.decode_seconds = chunk.decode_seconds
        self.tokens_per_second = chunk.tokens_per_second
