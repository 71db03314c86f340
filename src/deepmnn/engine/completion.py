"""What generation hands back: chunks as they come, and the whole answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from deepmnn.text.tool_calls.call import ToolCall, ToolCallDelta, add_deltas


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely one token of an answer was, and which ones were the most likely in its place.

    Natural logarithms of the model's own probabilities: log-softmax of its logits, before
    penalties, temperature and filters, as vLLM gives them. They say what the model thinks, however
    it is sampled.

    Attributes:
        id: the token.
        logprob: its log probability.
        top: the most likely tokens, the likeliest first, and their log probabilities.
    """

    id: int
    logprob: float
    top: dict[int, float]


@dataclass(frozen=True, repr=False)
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
        queue_seconds: how much of prefill_seconds it waited for its turn.
        choice: which of the prompt's answers this is (`SamplingParams.n`).
        logprobs: one for each of ids, when `SamplingParams.logprobs` asks for them; else empty.
        tool_calls: pieces of the calls of tools, when the request offers any.
        reasoning_tokens: tokens generated so far that were reasoning.
        stop_string: which of `SamplingParams.stop` has ended the answer; "" when none has.
        drafted_tokens: tokens that were guessed ahead so far; accepted_tokens: those of them that
            the model has then said (docs/speculation.md).
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
    choice: int = 0
    queue_seconds: float = 0.0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    reasoning_tokens: int = 0
    stop_string: str = ""
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed so far; 0 until the second token."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps and self.decode_seconds else 0.0

    def __repr__(self) -> str:
        where = f"{self.index}" if self.choice == 0 else f"{self.index}, choice {self.choice}"
        said = _said(self.reasoning, self.text)
        return f"Chunk({where}: {said}, {_ended(len(self.ids), self.finish_reason)})"


@dataclass(repr=False)
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
    queue_seconds: float = 0.0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    reasoning_tokens: int = 0
    stop_string: str = ""
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        """Appends a chunk."""
        self.text += chunk.text
        self.reasoning += chunk.reasoning
        self.ids += chunk.ids
        self.logprobs += chunk.logprobs
        add_deltas(self.tool_calls, chunk.tool_calls)
        self.reasoning_tokens = chunk.reasoning_tokens
        self.stop_string = chunk.stop_string
        self.drafted_tokens = chunk.drafted_tokens
        self.accepted_tokens = chunk.accepted_tokens
        self.finish_reason = chunk.finish_reason
        self.prompt_tokens = chunk.prompt_tokens
        self.cached_tokens = chunk.cached_tokens
        self.completion_tokens = chunk.completion_tokens
        self.prefill_seconds = chunk.prefill_seconds
        self.decode_seconds = chunk.decode_seconds
        self.tokens_per_second = chunk.tokens_per_second
        self.queue_seconds = chunk.queue_seconds

    def __repr__(self) -> str:
        said = _said(self.reasoning, self.text)
        return f"Completion({said}, {_ended(self.completion_tokens, self.finish_reason)})"


def _said(reasoning: str, text: str) -> str:
    """The beginning of an answer; of its reasoning, too, where it has some."""
    thought = f"reasoning={_cut(reasoning)}, " if reasoning else ""
    return f"{thought}text={_cut(text)}"


def _cut(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:59]!r}…"


def _ended(tokens: int, finish_reason: str | None) -> str:
    return f"{tokens} token{'s' * (tokens != 1)}, {finish_reason or 'unfinished'}"
