"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence as List
from dataclasses import dataclass, field, replace

from deepmnn.backends.base import F32, Draw
from deepmnn.engine.completion import TokenLogprobs
from deepmnn.engine.kv_cache import BlockTable
from deepmnn.engine.logprobs import token_logprobs
from deepmnn.engine.sampler import Sampler
from deepmnn.text.constraint import Constraint
from deepmnn.text.sampling_params import SamplingParams
from deepmnn.text.stream import TextStream


@dataclass(eq=False)
class Sequence(BlockTable):
    """A prompt, the answer so far and when it is done.

    limit: the longest `ids` may grow. output: turns tokens into text; None when nobody reads it.
    constraint: what holds the answer to a grammar. finish_reason: None while running, then "stop"
    (end-of-sequence token, stop string or the end of the grammar), "length", "cancelled" or
    "error". error: what went wrong then. cached_tokens: prompt rows that were found in the cache.
    Times are seconds of time.perf_counter(). leader: the sequence that prefills the same prompt
    (`sibling`). logprobs: of the tokens so far, where params ask for them. drafted_tokens: tokens
    that were guessed ahead; accepted_tokens: those of them that were right.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    limit: int = 0
    eos_ids: frozenset[int] = frozenset()
    output: TextStream | None = None
    constraint: Constraint | None = None
    finish_reason: str | None = None
    error: BaseException | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    submitted: float = field(default_factory=time.perf_counter)
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    leader: Sequence | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.ids)
        self._sampler = Sampler(self.params, self.constraint)

    @property
    def answer(self) -> list[int]:
        """The tokens generated so far."""
        return self.ids[self.prompt_tokens :]

    @property
    def completion_tokens(self) -> int:
        """How many that are."""
        return len(self.ids) - self.prompt_tokens

    def sibling(self, number: int, output: TextStream | None) -> Sequence:
        """Another answer to the prompt, drawn with seed + number, which shares its cache rows."""
        seed = self.params.seed
        params = replace(self.params, seed=None if seed is None else seed + number)
        ids, eos_ids = self.ids[: self.prompt_tokens], self.eos_ids
        return Sequence(
            ids,
            params=params,
            limit=self.limit,
            eos_ids=eos_ids,
            output=output,
            constraint=self.constraint and self.constraint.copy(),
            leader=self,
        )

    def draw(self, logits: F32) -> Draw:
        """How the next token is drawn from logits [vocab_size]."""
        return self._sampler.draw(logits, self.ids, self.prompt_tokens)

    def record(self, logits: F32, token: int) -> None:
        """Keeps the log probabilities of the next token, before it is accepted, if asked to."""
        if self.params.logprobs is not None:
            self.logprobs.append(token_logprobs(logits, token, self.params.logprobs))

    def accept(self, tokens: List[int]) -> None:
        """Takes the next tokens, at least one.

        The one that ends the answer is the last: those after it are dropped, and so is their text.
        """
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token
        for token in tokens:
            self.ids.append(token)
            if self.constraint is not None:
                self.constraint.accept(token)
            if token in self.eos_ids and (self.constraint or not self.params.ignore_eos):
                return self.finish("stop")
            if self.output is not None:
                self.output.push(token)
                if self.output.stopped:
                    return self.finish("stop")
            if self.constraint is not None and self.constraint.complete:
                return self.finish("stop")
            if len(self.ids) >= self.limit:
                return self.finish("length")

    def finish(self, reason: str) -> None:
        """Ends the answer and lets go of text that was held back."""
        self.finish_reason = reason
        if self.output is not None:
            self.output.close()

    def fail(self, error: BaseException) -> None:
        """Ends the answer with an error."""
        self.error, self.finish_reason = error, "error"
